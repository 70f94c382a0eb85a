// How a backward pass runs on CUDA: a pass of its own for dZ, products that make dZ themselves, or one kernel for dX
// and dW, whichever the model of plan.h predicts to be the fastest.
#pragma once
#include "plan.h"

namespace pw {

// Blocks of `tiles_per_chunk` pixel tiles times one channel tile; each leaves one partial sum per channel.
struct ActivationGradPlan {
  int64_t channel_tiles = 0, chunks = 0, tiles_per_chunk = 0;
  PW_HD int64_t work() const { return channel_tiles * chunks; }
};

inline ActivationGradPlan plan_activation_grad(const ActivationGrad& a, const Tuning& tuning = {}) {
  ActivationGradPlan p;
  const int64_t pixel_tiles = divide_up(a.pixels.count(), kTilePixels);
  p.channel_tiles = divide_up(a.channels, kTileChannels);
  p.tiles_per_chunk = std::max<int64_t>(1, divide_up(pixel_tiles, 2 * tuning.multiprocessors));
  p.chunks = divide_up(pixel_tiles, p.tiles_per_chunk);
  return p;
}

inline bool writes_dz(const ActivationGrad& a) { return a.activation.kind != Act::none; }

inline double memory_bytes(const ActivationGrad& a) {
  const double element = double(element_bytes(a.dtype));
  const double each = element * (writes_dz(a) ? 2 : 1) + saved_bytes({a.saved, {}, a.mask}, a.dtype);
  return each * double(a.pixels.count()) * double(a.channels);
}

// Its own launch and that of the sum of db's shares.
inline double predict(const ActivationGrad& a) {
  const double derivatives =
      writes_dz(a) ? double(a.pixels.count() * a.channels) / derivatives_per_us(a.activation, a.mask) : 0;
  return Model::kLaunch * (1 + (a.db != nullptr)) + std::max(memory_bytes(a) / Model::kMemory, derivatives);
}

// Whether a product reads dY along the bits of its mask, as gemm_mma has to.
inline bool along_mask(const Products& p) {
  const Gemm& g = *p.gemms;
  const Access access = access_of(p.gemms, p.count);
  const bool bits_along_k = g.gate.mask.along_pixels == (g.pixels == Pixels::on_k);
  return (g.gate_on_a() ? access.a : access.b).along_k == bits_along_k;
}

// Whether products that work dZ out themselves, and add up db, beat `pass` and products of the dZ that it writes. A
// layout that differs between dY and what was saved is for the pass, which reads each in its own order.
inline bool gates(const std::vector<Products>& products, const ActivationGrad& pass, const Tuning& tuning = {}) {
  double gain = predict(pass);
  for (const Products& p : products) {
    if (kernel_of(*p.gemms, tuning) == Kernel::fma || tuning.gate == 0) return false;
    const Gemm& g = *p.gemms;
    // Beyond the ends of dY there are zeros, which have to stay zeros.
    if (!(activation_grad(g.gate.activation, 0.0, 0.0) == 0)) return false;
    if (g.gate.mask.words && !along_mask(p)) return false;
    if (tuning.gate == 1) continue;
    const Matrix &dy = g.gate_on_a() ? g.segment[0].a : g.segment[0].b, &saved = g.gate.saved;
    const auto last = [](const Steps& s) { return s.step[kRank - 1]; };
    if (saved.data && (last(saved.row) != last(dy.row) || last(saved.col) != last(dy.col))) return false;
    gain -= plan_gemm(p.gemms, p.count, tuning).microseconds;
    std::vector<Gemm> plain(p.gemms, p.gemms + std::min<int64_t>(p.count, 2));  // a plan looks at no more
    for (Gemm& of_dz : plain) of_dz.gate = {}, of_dz.row_sums = nullptr;
    gain += plan_gemm(plain.data(), p.count, tuning).microseconds;
  }
  return tuning.gate == 1 || gain > 0;
}

// dX and dW by one kernel, which reads dY, what was saved and X once: `splits` shares of the pixels.
struct BackwardPlan {
  int out = 0, in = 0;  // channels that the kernel has room for; 0: it cannot
  int64_t tiles = 0, tiles_per_split = 1, splits = 0;
  int write_bytes = 16;     // of dX
  double microseconds = 0;  // predicted
  Access access;            // of dW's operands
};

constexpr int kBackwardRooms[][2] = {{64, 256}, {256, 64}, {128, 128}};

inline size_t workspace_bytes(const BackwardPlan& p, const Gemm& dw) {
  return p.splits * dw.m.count() * partial_columns(dw) * accumulator_bytes(dw.dtype);
}

// dY, what was saved, X and dX, of a pass that `dw` describes.
inline double memory_bytes(const Gemm& dw) {
  const double element = double(element_bytes(dw.dtype)), x = 2 * double(dw.n.count()) * element;
  return (double(dw.m.count()) * (element + saved_bytes(dw.gate, dw.dtype)) + x) * double(dw.segment[0].k.count());
}

// The longer of device memory and the steps of the blocks; then the partial sums.
inline double predict(const BackwardPlan& p, const Gemm& dw, const Tuning& tuning) {
  const Activation& activation = dw.gate.activation;
  const double blocks = kBackwardBlocks * double(tuning.multiprocessors), pixels = blocks * kBackwardPixels;
  const double products = 4.0 * p.out * p.in * pixels / operations_per_us(Kernel::mma, dw);
  const double derivatives = dw.gate.present() ? p.out * pixels / derivatives_per_us(activation, dw.gate.mask) : 0;
  const double step = std::max(products + derivatives, Model::kBackwardStep);
  const double waves = double(divide_up(p.splits, int64_t(blocks)));
  const double steps = waves * (double(p.tiles_per_split) * step + Model::kTile);
  return 2 * Model::kLaunch + std::max(memory_bytes(dw) / Model::kMemory, steps) +
         2 * double(workspace_bytes(p, dw)) / Model::kCache;
}

inline BackwardPlan plan_backward(const Gemm& dx, const Gemm& dw, const Tuning& tuning = {}) {
  BackwardPlan p;
  const int64_t out = dw.m.count(), in = dw.n.count(), element = element_bytes(dw.dtype);
  p.access = access_of(&dw, 1);
  // Tiles of dY and X lie alike, and the bits of a mask with them.
  const bool along_pixels = p.access.b.along_k, by_pixel = dx.pixels == Pixels::on_m;
  if (element != 2 || dw.segments != 1 || p.access.a.along_k != along_pixels) return p;
  if (dw.gate.mask.words && dw.gate.mask.along_pixels != along_pixels) return p;
  for (const auto& room : kBackwardRooms)
    if (!p.out && out <= room[0] && in <= room[1]) p.out = room[0], p.in = room[1];
  if (!p.out) return p;
  const Axis &pixels = by_pixel ? dx.m : dx.n, &channels = by_pixel ? dx.n : dx.m;
  const Steps &of_pixels = by_pixel ? dx.c.row : dx.c.col, &of_channels = by_pixel ? dx.c.col : dx.c.row;
  p.write_bytes = along_pixels ? vector_bytes(dx.c.data, 0, pixels, of_pixels, channels, of_channels, element)
                               : vector_bytes(dx.c.data, 0, channels, of_channels, pixels, of_pixels, element);
  p.tiles = divide_up(dw.segment[0].k.count(), kBackwardPixels);
  p.tiles_per_split = std::max<int64_t>(1, divide_up(p.tiles, kBackwardBlocks * tuning.multiprocessors));
  p.splits = divide_up(p.tiles, p.tiles_per_split);
  p.microseconds = predict(p, dw, tuning);
  return p;
}

// Whether one kernel replaces `products`, dX and dW with a gate, and beats them and a pass with products of its dZ.
inline bool one_pass(const std::vector<Products>& products, const ActivationGrad& pass, const Tuning& tuning = {}) {
  if (products.size() != 2 || tuning.one_pass == 0) return false;
  double others = 0, plain = predict(pass);
  for (const Products& p : products) {
    const Gemm& g = *p.gemms;
    if (p.count != 1 || !(activation_grad(g.gate.activation, 0.0, 0.0) == 0)) return false;
    Gemm of_dz = g;
    of_dz.gate = {}, of_dz.row_sums = nullptr;
    others += plan_gemm(&g, 1, tuning).microseconds, plain += plan_gemm(&of_dz, 1, tuning).microseconds;
  }
  const Gemm &dx = *products[0].gemms, &dw = *products[1].gemms;
  if (dx.pixels == Pixels::on_k || dw.pixels != Pixels::on_k) return false;  // of two inputs
  const BackwardPlan p = plan_backward(dx, dw, tuning);
  return p.out && (tuning.one_pass == 1 || p.microseconds < std::min(others, plain));
}

inline size_t workspace_bytes(const ActivationGradPlan& p, const ActivationGrad& a) {
  return a.db ? p.chunks * a.channels * accumulator_bytes(a.dtype) : 0;
}

}  // namespace pw
