// Which kernel runs a product on CUDA and in what tiles: those that a model of an H200 predicts to be the fastest.
// Plain C++, so that it is tested without a GPU; all of it follows from the problem alone, so that every GPU adds in
// the same order.
#pragma once
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "../activation.h"
#include "access.h"

namespace pw {

constexpr int64_t kSharedBytes = 227 << 10;  // of a multiprocessor, and of a block, of an H200

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

// Of an H200, in bytes and operations per microsecond: fitted to 569 plans of bf16 layers at batch 32 (bench/plans.py,
// bench/results/plans.H200.csv), of which they foretold the time within a third. gemm_lean was rewritten since: what
// its tiles and steps cost is scaled by its instructions, not measured. Float32 was never measured.
struct Model {
  static constexpr double kMemory = 4.3e6, kCache = 3e6;  // device memory; second-level cache
  static constexpr double kHalf = 400e6, kTf32 = 130e6, kStrict = 44e6, kFma = 40e6;
  static constexpr double kClip = 1.5e6, kCurve = 0.3e6;           // derivatives: by comparisons; by functions
  static constexpr double kLaunch = 3, kStep = 0.6;                // us: a kernel; one step's latency
  static constexpr double kTile = 1.0, kSums = 2.5 / (128 * 128);  // us: a tile's ends, and for each of its sums
  static constexpr double kReduce = 45e3;                          // sums that reduce() finishes
};

enum class Kernel { mma, fma };

struct Tile {
  int m, n;
  int blocks;  // that a multiprocessor holds
};
constexpr Tile kMmaTiles[] = {{64, 64, 4}, {32, 128, 4}, {128, 32, 4}, {64, 128, 2}, {128, 64, 2}, {128, 128, 2}};
constexpr int kSmallMmaTiles = 3;  // of 4 warps, the first ones
constexpr Tile kFmaTiles[] = {{64, 64, 2}, {128, 128, 2}};
constexpr int kTileK = 16;                            // channels of one step of gemm_fma
constexpr int kStepBytes = 64, kLeanStepBytes = 128;  // of each row in one step of gemm_mma, of gemm_lean
constexpr int kTilePixels = 64, kTileChannels = 32;   // of ActivationGrad
constexpr int64_t kLeastSteps = 4, kMostSplits = 512;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
// Partial sums have a column for row sums, and an even number of them, for pairs to be aligned.
PW_HD int64_t partial_columns(const Gemm& g) { return (g.n.count() + (g.row_sums != nullptr) + 1) / 2 * 2; }
constexpr int kReduceThreads = 256, kReduceWarps = kReduceThreads / 32;

// Warps that share out the shares of 32 columns: of many shares, for more of them to be under way at once.
PW_HD int reduce_parts(int64_t splits) { return splits < 32 ? 1 : kReduceWarps; }

// Columns that a block adds up.
PW_HD int reduce_width(int64_t splits) { return kReduceThreads / reduce_parts(splits); }

// Threads that add up a row of shares: whole warps where they make words of a mask.
PW_HD int64_t reduce_threads(const Gemm& g, int64_t columns) {
  return g.mask.words ? (g.n.count() + 31) / 32 * 32 : columns;
}

// Whether an axis has but its innermost dimension.
inline bool is_flat(const Axis& axis) { return axis.count() == axis.size[kRank - 1]; }

inline int64_t accumulator_bytes(DType dtype) { return dtype == DType::f64 ? 8 : 4; }

// C is cut into tiles, and where they are too few for the GPU the sum over k into `splits` shares, whose partial sums
// pass through the workspace and are added in order.
struct GemmPlan {
  Kernel kernel = Kernel::fma;
  int tile = 0, tile_m = 1, tile_n = 1, tile_k = 1;
  int64_t tiles_m = 0, tiles_n = 0, groups = 0;
  int64_t splits = 1, steps = 0, steps_per_split = 0;
  int64_t weight_blocks = 0;        // that keep W in shared memory as they go on to other pixels; 0: none does
  bool lean = false, wide = false;  // by gemm_lean, which reads both operands 16 bytes at a time
  double microseconds = 0;          // predicted
  Access access;
  PW_HD bool weight_stays() const { return weight_blocks > 0; }
  PW_HD int64_t work() const { return tiles_m * tiles_n * groups * splits; }
  int64_t blocks() const { return weight_stays() ? std::min(weight_blocks, work()) : work(); }
};

inline const char* name(const GemmPlan& p) {
  return p.kernel == Kernel::fma ? "gemm_fma" : p.lean ? "gemm_lean" : "gemm_mma";
}

// The sums of float64, and float32's own beside those of its TF32 parts, would not fit into the registers of a large
// tile; nor would the largest one's beside the addresses of narrow operands. gemm_mma computes what is left.
inline std::vector<Tile> candidate_tiles(const GemmPlan& p, const Gemm& g) {
  if (p.kernel == Kernel::fma) return {std::begin(kFmaTiles), std::end(kFmaTiles) - (g.dtype == DType::f64)};
  if (!p.lean) return {kMmaTiles[0]};
  const bool strict = g.dtype == DType::f32 && !g.tf32;
  return {std::begin(kMmaTiles), strict ? std::begin(kMmaTiles) + kSmallMmaTiles : std::end(kMmaTiles) - !p.wide};
}

// How much longer than where 16 bytes are read at a time: gemm_lean has an address for each vector, gemm_mma looks it
// up.
inline double slowdown(const GemmPlan& p) {
  if (p.kernel == Kernel::fma || p.wide) return 1;
  const int narrowest = std::min({p.access.a.bytes, p.access.b.bytes, p.access.c});
  if (p.lean) return narrowest == 16 ? 1.2 : narrowest == 8 ? 1.3 : narrowest == 4 ? 1.7 : 2.5;
  return narrowest == 16 ? 3 : narrowest == 8 ? 4 : narrowest == 4 ? 6 : 8;
}

inline double operations_per_us(Kernel kernel, const Gemm& g) {
  if (kernel == Kernel::fma) return Model::kFma;
  return g.dtype != DType::f32 ? Model::kHalf : g.tf32 ? Model::kTf32 : Model::kStrict;
}

// Rows or columns of a tile that have a gate.
inline int gate_side(const Gemm& g, const Tile& tile) {
  return !g.gate.present() ? 0 : g.gate_on_a() ? tile.m : tile.n;
}

// Bytes of a mask for each element, and those that a gate reads beside each element of dY.
constexpr double kMaskBytes = 1.0 / 8;
inline double mask_bytes(const Gate& gate) { return gate.present() ? kMaskBytes : 0; }

// Shared memory of a block of gemm_lean, at most: stages and `weight_steps` tiles of W; or of gemm_mma.
inline int64_t shared_bytes(const Gemm& g, bool lean, const Tile& tile, int64_t weight_steps = 0) {
  const int64_t warps = tile.blocks > 2 ? 4 : 8, output = warps * 16 * (32 + 8) * 4;
  if (lean) {
    const auto side = [](int64_t size, int64_t steps) {
      return steps * (kLeanStepBytes * size + std::max<int64_t>(16 * size, 1024));
    };
    const int weight = g.pixels == Pixels::on_m ? tile.n : tile.m;
    const int64_t mask = g.gate.mask.words ? 16 * std::max(tile.m, tile.n) : 0;
    return side(tile.m, 2) + side(tile.n, 2) + side(weight, weight_steps) + mask + output + (1 << 10);
  }
  return (3 * (kStepBytes + 16) + 16) * (tile.m + tile.n) + output + (4 << 10);
}

// Blocks that a multiprocessor holds. 0: not one with so much of W.
inline int blocks_held(const Gemm& g, bool lean, const Tile& tile, int64_t weight_steps = 0) {
  const int64_t fit =
      kSharedBytes / (shared_bytes(g, lean, tile, weight_steps) + (1 << 10));  // and 1 KB of the system's
  return int(std::min<int64_t>(tile.blocks, fit));
}

// The same sums on a GPU whose blocks may have less shared memory than an H200's: W is copied for each tile.
inline GemmPlan fitted(GemmPlan p, const Gemm& g, int64_t block_bytes) {
  if (p.weight_stays() && shared_bytes(g, p.lean, {p.tile_m, p.tile_n, 0}, p.steps) > block_bytes) p.weight_blocks = 0;
  return p;
}

// The same sums by at most so many blocks: W stays where their number is a multiple of its tiles.
inline GemmPlan limited(GemmPlan p, const Gemm& g, int64_t max_blocks) {
  const int64_t tiles = g.pixels == Pixels::on_m ? p.tiles_n : p.tiles_m;
  if (p.weight_stays()) p.weight_blocks = std::min(p.weight_blocks, max_blocks) / tiles * tiles;
  return p;
}

// Blocks that share out the pixels, as many for each tile of channels, with W in the shared memory of each. 0: W does
// not fit, there are several or none, or each block would have one tile.
inline int64_t weight_blocks(const Gemm& g, const GemmPlan& p, const Tile& tile, const Tuning& tuning) {
  if (!p.lean || g.pixels == Pixels::on_k || p.splits > 1 || p.groups > 1 || !tuning.stays) return 0;
  const int64_t held = blocks_held(g, p.lean, tile, p.steps) * tuning.multiprocessors;
  const int64_t tiles = g.pixels == Pixels::on_m ? p.tiles_n : p.tiles_m;
  const int64_t blocks = tiles ? held / tiles * tiles : 0;
  return tuning.stays == 1 || blocks < p.work() ? blocks : 0;
}

inline double derivatives_per_us(const Activation& a, const Mask& mask) {
  return clips(a) || mask.words ? Model::kClip : Model::kCurve;
}

// Bytes that a plan moves: from and to device memory if every operand is read once, and to the tiles, from the cache.
struct Traffic {
  double memory, operands, partials;
};

inline Traffic traffic(const Gemm& g, const GemmPlan& p) {
  const double m = double(g.m.count()), n = double(g.n.count()), k = double(p.steps * p.tile_k);
  const double bytes = double(element_bytes(g.dtype)), groups = double(p.groups);
  const double results =
      m * n * ((1 + (g.z.data != nullptr) + (g.residual.data != nullptr)) * bytes + (g.mask.words ? kMaskBytes : 0));
  const double saved = (g.gate_on_a() ? m : n) * mask_bytes(g.gate);
  const double saved_tile = gate_side(g, {p.tile_m, p.tile_n, 0}) * mask_bytes(g.gate);
  const double tiles = groups * double(p.tiles_m) * double(p.tiles_n);
  const bool on_m = g.pixels == Pixels::on_m;
  const double weights = double(on_m ? p.tile_n : p.tile_m) * bytes,
               images = double(on_m ? p.tile_m : p.tile_n) * bytes;
  const double copies = p.weight_stays() ? double(p.blocks()) : tiles;  // of a tile's W
  const double columns = double(partial_columns(g));
  return {groups * (k * ((m + n) * bytes + saved) + results), (tiles * (images + saved_tile) + copies * weights) * k,
          p.splits == 1 ? 0 : 2 * groups * double(p.splits) * m * columns * double(accumulator_bytes(g.dtype))};
}

// The sum of the shares, a launch of its own.
inline double reduce_us(const Gemm& g, const GemmPlan& p, const Traffic& moved) {
  const double sums = double(p.groups) * double(g.m.count()) * double(partial_columns(g));
  return Model::kLaunch + std::max(moved.partials / Model::kCache, sums / Model::kReduce);
}

// The longest of: device memory; the waves of tiles, each the longest of its products, its operands from the cache and
// the latency of its steps. Then the partial sums. Where W stays, it comes before the first wave.
inline double predict(const Gemm& g, const GemmPlan& p, const Tile& tile, const Tuning& tuning) {
  const Traffic moved = traffic(g, p);
  const int gate = gate_side(g, tile);
  const bool stays = p.weight_stays();
  const double share = stays ? double(p.weight_blocks) : double(tuning.multiprocessors) * blocks_held(g, p.lean, tile);
  const double depth = double(p.steps_per_split * p.tile_k), bytes = double(element_bytes(g.dtype));
  const int weights = g.pixels == Pixels::on_m ? tile.n : tile.m;  // W's side of a tile
  const double products = 2.0 * tile.m * tile.n * depth * share / operations_per_us(p.kernel, g);
  const double derivatives = gate * depth * share / derivatives_per_us(g.gate.activation, g.gate.mask);
  const double row = (tile.m + tile.n - (stays ? weights : 0)) * bytes + gate * mask_bytes(g.gate);
  const double operands = row * depth * share / Model::kCache;
  const double waves = double(divide_up(p.work(), int64_t(share)));
  const double latency = double(p.steps_per_split) * Model::kStep;
  const double ends = Model::kTile + Model::kSums * tile.m * tile.n;
  const double tiles = waves * (slowdown(p) * std::max({products + derivatives, operands, latency}) + ends);
  const double partial = p.splits == 1 ? 0 : reduce_us(g, p, moved);
  const double before = stays ? weights * bytes * depth * share / Model::kCache : 0;
  return Model::kLaunch + std::max(moved.memory / Model::kMemory, before + tiles) + partial;
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
    p.microseconds = predict(g, p, tile, tuning);
    if (wanted == 1 || p.microseconds < best.microseconds) best = p;
    p.weight_blocks = weight_blocks(g, p, tile, tuning);
    if (!p.weight_stays()) continue;
    p.microseconds = predict(g, p, tile, tuning);
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

inline size_t workspace_bytes(const GemmPlan& p, const Gemm& g) {
  return p.splits == 1 ? 0 : p.groups * p.splits * g.m.count() * partial_columns(g) * accumulator_bytes(g.dtype);
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
