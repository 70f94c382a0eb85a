// How a product is cut into tiles for CUDA, and what a block of each holds.
#pragma once
#include <algorithm>
#include <vector>

#include "access.h"

namespace pw {

constexpr int64_t kSharedBytes = 227 << 10;  // of a multiprocessor, and of a block, of an H200

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

// Whether all of an axis lies at one distance.
inline bool is_even(const Axis& axis, const Steps& steps) {
  int64_t next = 0;  // the step that continues the dimensions before
  for (int d = kRank - 1; d >= 0; --d) {
    if (axis.size[d] == 1) continue;
    if (next && steps.step[d] != next) return false;
    next = steps.step[d] * axis.size[d];
  }
  return true;
}

// Bytes of C that gemm_lean writes at a time.
inline int written_bytes(const Gemm& g, const Access& access) {
  const int64_t element = element_bytes(g.dtype);
  return g.n.count() * element % access.c ? int(element) : access.c;
}

// Whether C alone is left to write at the end, and ReLU's mask, in rows of vectors that lie at one distance.
inline bool ends_simply(const Gemm& g, const Access& access) {
  const auto even = [&](const Matrix& x) { return !x.data || is_even(g.m, x.row); };
  const bool masks = g.mask.words && g.activation.kind != Act::relu;
  return even(g.c) && even(g.residual) && !g.z.data && !masks && written_bytes(g, access) == 16;
}

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
// tile; nor would the largest one's beside the addresses of narrow operands, or what 16-bit floats that do not end
// simply take. gemm_mma computes what is left.
inline std::vector<Tile> candidate_tiles(const GemmPlan& p, const Gemm& g) {
  if (p.kernel == Kernel::fma) return {std::begin(kFmaTiles), std::end(kFmaTiles) - (g.dtype == DType::f64)};
  if (!p.lean) return {kMmaTiles[0]};
  const bool strict = g.dtype == DType::f32 && !g.tf32;
  const bool largest = p.wide && (g.dtype == DType::f32 || ends_simply(g, p.access));
  return {std::begin(kMmaTiles), strict ? std::begin(kMmaTiles) + kSmallMmaTiles : std::end(kMmaTiles) - !largest};
}

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

inline size_t workspace_bytes(const GemmPlan& p, const Gemm& g) {
  return p.splits == 1 ? 0 : p.groups * p.splits * g.m.count() * partial_columns(g) * accumulator_bytes(g.dtype);
}

}  // namespace pw
