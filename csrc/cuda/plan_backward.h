// How a backward pass runs on CUDA: a pass of its own for dZ, or products that make dZ themselves, whichever the model
// of plan.h predicts to be faster.
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
  const double saved = a.mask.words ? kMaskBytes : a.saved.data ? element : 0;
  const double each = element * (writes_dz(a) ? 2 : 1) + saved;
  return each * double(a.pixels.count()) * double(a.channels);
}

// Its own launch and that of the sum of db's shares.
inline double predict(const ActivationGrad& a) {
  const double derivatives =
      writes_dz(a) ? double(a.pixels.count() * a.channels) / derivatives_per_us(a.activation, a.mask) : 0;
  return Model::kLaunch * (1 + (a.db != nullptr)) + std::max(memory_bytes(a) / Model::kMemory, derivatives);
}

// Whether a product reads dY along the bits of its mask, as gemm_lean has to.
inline bool along_mask(const Products& p) {
  const Gemm& g = *p.gemms;
  const Access access = access_of(p.gemms, p.count);
  const bool bits_along_k = g.gate.mask.along_pixels == (g.pixels == Pixels::on_k);
  return (g.gate_on_a() ? access.a : access.b).along_k == bits_along_k;
}

// Whether products that make dZ themselves, by a mask, and add up db, beat `pass` and products of the dZ that it
// writes.
inline bool gates(const std::vector<Products>& products, const ActivationGrad& pass, const Tuning& tuning = {}) {
  double gain = predict(pass);
  for (const Products& p : products) {
    const GemmPlan plan = plan_gemm(p.gemms, p.count, tuning);
    if (!plan.lean || tuning.gate == 0 || (p.gemms->gate.present() && !along_mask(p))) return false;
    gain -= plan.microseconds;
    std::vector<Gemm> plain(p.gemms, p.gemms + std::min<int64_t>(p.count, 2));  // a plan looks at no more
    for (Gemm& of_dz : plain) of_dz.gate = {}, of_dz.row_sums = nullptr;
    gain += plan_gemm(plain.data(), p.count, tuning).microseconds;
  }
  return tuning.gate == 1 || gain > 0;
}

inline size_t workspace_bytes(const ActivationGradPlan& p, const ActivationGrad& a) {
  return a.db ? p.chunks * a.channels * accumulator_bytes(a.dtype) : 0;
}

}  // namespace pw
