// Which kernel runs a product on CUDA and in what tiles: those that a model of an H200 predicts to be the fastest.
// Plain C++, so that it is tested without a GPU; all of it follows from the problem alone, so that every GPU adds in
// the same order.
#pragma once
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "model.h"

namespace pw {

// What a launch assumes of the GPU, and what tests decide in its place.
struct Tuning {
  int64_t multiprocessors = 132;  // of an H200, on every GPU: they decide the order of sums
  int64_t max_blocks = 1 << 16;   // each block goes on to further tiles
  int tile = -1;                  // of candidate_tiles(); -1: the fastest by prediction
  int64_t splits = 0;             // shares of the sum over k; 0: as predicted
  bool fma = false;               // float32 by gemm_fma, which the other kernel is checked against
  int gate = -1;                  // 0: a pass of its own for dZ; 1: none; -1: as predicted
  int stays = -1;                 // 1: W stays in shared memory where it fits; 0: never; -1: as predicted
  bool lean = true;               // gemm_lean where it can, else gemm_mma
};

inline Tuning forced_tuning;  // of the calls on a GPU: for tests there

// Blocks that share out the pixels, as many for each tile of channels, with W in the shared memory of each. 0: W does
// not fit, there are several or none, or each block would have one tile.
inline int64_t weight_blocks(const Gemm& g, const GemmPlan& p, const Tile& tile, const Tuning& tuning) {
  if (!p.lean || g.pixels == Pixels::on_k || p.splits > 1 || p.groups > 1 || !tuning.stays) return 0;
  const int64_t held = blocks_held(g, p.lean, tile, p.steps) * tuning.multiprocessors;
  const int64_t tiles = g.pixels == Pixels::on_m ? p.tiles_n : p.tiles_m;
  const int64_t blocks = tiles ? held / tiles * tiles : 0;
  return tuning.stays == 1 || blocks < p.work() ? blocks : 0;
}

inline GemmPlan plan_tile(const Gemm& g, const GemmPlan& base, int index, const Tile& tile, const Tuning& tuning) {
  GemmPlan best;
  for (int64_t wanted = 1; wanted <= kMostSplits; wanted *= 2) {
    if (tuning.splits && wanted > 1) break;
    if (wanted > 1 && base.steps < wanted * kLeastSteps) break;
    GemmPlan p = base;
    p.tile = index, p.tile_m = tile.m, p.tile_n = tile.n;
    p.tiles_m = divide_up(g.m.count(), tile.m), p.tiles_n = divide_up(g.n.count(), tile.n);
    const int64_t splits = tuning.splits ? std::min(tuning.splits, std::max<int64_t>(1, p.steps)) : wanted;
    p.steps_per_split = divide_up(p.steps, splits);
    p.splits = p.steps ? divide_up(p.steps, p.steps_per_split) : 1;  // none is empty
    p.microseconds = predict(g, p, tile, tuning.multiprocessors);
    if (wanted == 1 || p.microseconds < best.microseconds) best = p;
    p.weight_blocks = weight_blocks(g, p, tile, tuning);
    if (!p.weight_stays()) continue;
    p.microseconds = predict(g, p, tile, tuning.multiprocessors);
    if (tuning.stays == 1 || p.microseconds < best.microseconds) best = p;
  }
  return best;
}

// The largest offset of a matrix's elements along one axis.
inline int64_t reach(const Axis& axis, const Steps& steps) {
  int64_t sum = 0;
  for (int d = 0; d < kRank; ++d) sum += (axis.size[d] - 1) * steps.step[d];
  return sum;
}

// Whether both operands of a product are read 16 bytes at a time, all of them there. Where k has two dimensions, a step
// reaches the next image at most, in operands that lie along k.
inline bool is_wide(const Gemm& g, const Access& access) {
  const int64_t vector = 16 / element_bytes(g.dtype);
  bool wide = access.a.bytes == 16 && access.b.bytes == 16;
  wide = wide && (access.a.along_k || g.m.count() % vector == 0) && (access.b.along_k || g.n.count() % vector == 0);
  for (int s = 0; s < g.segments; ++s) {
    const Axis& k = g.segment[s].k;
    const bool images = g.segments == 1 && access.a.along_k && access.b.along_k && k.size[kRank - 3] == 1 &&
                        k.size[kRank - 1] >= kLeanStepBytes / element_bytes(g.dtype);
    wide = wide && (!(access.a.along_k || access.b.along_k) || k.count() % vector == 0) && (is_flat(k) || images);
  }
  return wide;
}

// Whether gemm_lean computes a product: axes of three dimensions at most, offsets and counts that fit 31 bits.
inline bool is_lean(const Gemm& g, int64_t count, const Access& access) {
  constexpr int64_t kMost = (int64_t(1) << 31) - (1 << 16);
  const int64_t depth = kLeanStepBytes / element_bytes(g.dtype);
  const auto fits = [&](const Matrix& x, const Axis& rows, const Axis& columns) {
    return !x.data || reach(rows, x.row) + reach(columns, x.col) < kMost;
  };
  const auto plain = [&](const Axis& axis) { return axis.size[0] == 1 && axis.count() < kMost; };
  if (g.gate.present() && (g.segments > 1 || count > 1)) return false;
  if (!plain(g.m) || !plain(g.n) || !fits(g.c, g.m, g.n) || !fits(g.z, g.m, g.n) || !fits(g.residual, g.m, g.n))
    return false;
  if (g.bias && (g.bias_step != 1 || g.bias_on_m == access.b.along_k)) return false;  // W lies as it does in no layout
  int64_t k = 0;
  for (int s = 0; s < g.segments; ++s) {
    const Segment& part = g.segment[s];
    k += part.k.count();
    if (!plain(part.k) || !fits(part.a, g.m, part.k) || !fits(part.b, part.k, g.n)) return false;
  }
  const double tiles = double(count) * (double(g.m.count()) / 32 + 1) * (double(g.n.count()) / 32 + 1);
  return k > 0 && tiles * double(std::min(kMostSplits, divide_up(k, depth))) < double(kMost);
}

inline Kernel kernel_of(const Gemm& g, const Tuning& tuning) {
  return g.dtype == DType::f64 || (g.dtype == DType::f32 && tuning.fma) ? Kernel::fma : Kernel::mma;
}

// `count` products at equal distances; a plan per candidate, in the order of candidate_tiles().
inline std::vector<GemmPlan> gemm_plans(const Gemm* gemms, int64_t count, const Tuning& tuning) {
  const Gemm& g = *gemms;
  GemmPlan base;
  base.groups = count;
  base.kernel = kernel_of(g, tuning);
  base.access = access_of(gemms, count);
  base.lean = tuning.lean && base.kernel == Kernel::mma && is_lean(g, count, base.access);
  base.wide = base.lean && is_wide(g, base.access);
  base.tile_k =
      base.kernel == Kernel::fma ? kTileK : int((base.lean ? kLeanStepBytes : kStepBytes) / element_bytes(g.dtype));
  for (int s = 0; s < g.segments; ++s) base.steps += divide_up(g.segment[s].k.count(), base.tile_k);
  std::vector<GemmPlan> plans;
  for (const Tile& tile : candidate_tiles(base, g))
    plans.push_back(plan_tile(g, base, int(plans.size()), tile, tuning));
  return plans;
}

inline GemmPlan plan_gemm(const Gemm* gemms, int64_t count, const Tuning& tuning = {}) {
  const std::vector<GemmPlan> plans = gemm_plans(gemms, count, tuning);
  if (tuning.tile >= 0) return plans[std::min(size_t(tuning.tile), plans.size() - 1)];
  return *std::min_element(plans.begin(), plans.end(),
                           [](const GemmPlan& a, const GemmPlan& b) { return a.microseconds < b.microseconds; });
}

// One line: the kernel, its tile and shares, the time predicted, and that of the others.
inline std::string explain_gemm(const Gemm* gemms, int64_t count, const Tuning& tuning = {}) {
  const GemmPlan p = plan_gemm(gemms, count, tuning);
  const auto time = [](const GemmPlan& q) {
    char text[64];
    std::snprintf(text, sizeof(text), "%dx%d %.1f us", q.tile_m, q.tile_n, q.microseconds);
    return std::string(text);
  };
  const char* numbers = gemms->dtype != DType::f32 ? "" : gemms->tf32 ? ", TF32" : ", three TF32 products";
  std::string text = name(p) + std::string(p.kernel == Kernel::fma ? "" : numbers);
  text += ", predicted for an H200: " + time(p);
  if (p.splits > 1) text += " in " + std::to_string(p.splits) + " shares of k";
  if (p.weight_stays()) text += ", W stays in the shared memory of " + std::to_string(p.blocks()) + " blocks";
  std::string others;
  for (const GemmPlan& q : gemm_plans(gemms, count, tuning))
    if (q.tile != p.tile) others += (others.empty() ? "" : ", ") + time(q);
  if (!others.empty()) text += " (" + others + ")";
  if (p.kernel == Kernel::mma)
    text += "; reads " + std::to_string(p.access.a.bytes) + " and " + std::to_string(p.access.b.bytes) +
            " bytes at a time, writes " + std::to_string(p.access.c);
  return text;
}

}  // namespace pw
