// Which kernel runs a problem on CUDA, in what tiles, and why. Plain C++, so that it is tested without a GPU; all of it
// follows from the problem alone, so that every GPU adds in the same order.
#pragma once
#include <algorithm>
#include <string>

#include "../problem.h"

namespace pw {

// What a launch assumes of the GPU; the emulator asks for less to reach every path with small problems.
struct Tuning {
  int64_t filling_blocks = 256;  // about two for each of an H200's 132 multiprocessors
  int64_t split_steps = 16;      // a share of the sum over k below 256 channels costs more than it saves
  int64_t max_blocks = 1 << 16;  // each block goes on to further tiles
};

constexpr int kSmallTile = 64, kLargeTile = 128;     // square tiles of C
constexpr int kTileK = 16;                           // channels of one step of the sum
constexpr int kTilePixels = 64, kTileChannels = 32;  // of ActivationGrad

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t accumulator_bytes(DType dtype) { return dtype == DType::f64 ? 8 : 4; }

// C is cut into tiles, and where they are too few for the GPU the sum over k into `splits` shares, whose partial sums
// pass through the workspace and are added in order.
struct GemmPlan {
  int tile = kSmallTile;
  int64_t tiles_m = 0, tiles_n = 0, groups = 0;
  int64_t splits = 1, steps = 0, steps_per_split = 0;
  PW_HD int64_t work() const { return tiles_m * tiles_n * groups * splits; }
};

inline int64_t gemm_steps(const Gemm& g) {
  int64_t steps = 0;
  for (int s = 0; s < g.segments; ++s) steps += divide_up(g.segment[s].k.count(), kTileK);
  return steps;
}

inline bool fills_large_tiles(const Gemm& g, int64_t groups, const Tuning& tuning) {
  const int64_t m = g.m.count(), n = g.n.count();
  return g.dtype != DType::f64 && m > kSmallTile && n > kSmallTile &&
         divide_up(m, kLargeTile) * divide_up(n, kLargeTile) * groups >= tuning.filling_blocks;
}

inline GemmPlan plan_gemm(const Gemm& g, int64_t groups, const Tuning& tuning = {}) {
  GemmPlan p;
  p.tile = fills_large_tiles(g, groups, tuning) ? kLargeTile : kSmallTile;
  p.tiles_m = divide_up(g.m.count(), p.tile), p.tiles_n = divide_up(g.n.count(), p.tile);
  p.groups = groups;
  p.steps = gemm_steps(g);
  const int64_t tiles = std::max<int64_t>(1, p.tiles_m * p.tiles_n * groups);
  const int64_t wanted = std::min(tuning.filling_blocks / tiles, p.steps / tuning.split_steps);
  p.steps_per_split = divide_up(p.steps, std::max<int64_t>(1, wanted));
  p.splits = p.steps ? divide_up(p.steps, p.steps_per_split) : 1;  // none is empty
  return p;
}

inline size_t workspace_bytes(const GemmPlan& p, const Gemm& g) {
  return p.splits == 1 ? 0 : p.groups * p.splits * g.m.count() * g.n.count() * accumulator_bytes(g.dtype);
}

// One line: the kernel, its tile and the reason for it, and how the sum is cut.
inline std::string explain_gemm(const Gemm& g, int64_t groups, const Tuning& tuning = {}) {
  const GemmPlan p = plan_gemm(g, groups, tuning);
  const std::string tile = std::to_string(p.tile), blocks = std::to_string(tuning.filling_blocks);
  std::string text = "gemm_fma " + tile + "x" + tile + ": ";
  if (p.tile == kLargeTile)
    text += "at least " + blocks + " large tiles";
  else if (g.dtype == DType::f64)
    text += "float64 has no large tile";
  else if (g.m.count() <= kSmallTile || g.n.count() <= kSmallTile)
    text += "a side of the product is at most " + std::to_string(kSmallTile);
  else
    text += "fewer than " + blocks + " large tiles";
  if (p.splits > 1)
    text += "; sum over k in " + std::to_string(p.splits) + " shares, as " +
            std::to_string(p.tiles_m * p.tiles_n * groups) + " tiles do not fill " + blocks + " blocks";
  return text;
}

// Blocks of `tiles_per_chunk` pixel tiles times one channel tile; each leaves one partial sum per channel.
struct ActivationGradPlan {
  int64_t channel_tiles = 0, chunks = 0, tiles_per_chunk = 0;
  PW_HD int64_t work() const { return channel_tiles * chunks; }
};

inline ActivationGradPlan plan_activation_grad(const ActivationGrad& a, const Tuning& tuning = {}) {
  ActivationGradPlan p;
  const int64_t pixel_tiles = divide_up(a.pixels.count(), kTilePixels);
  p.channel_tiles = divide_up(a.channels, kTileChannels);
  p.tiles_per_chunk = std::max<int64_t>(1, divide_up(pixel_tiles, tuning.filling_blocks));
  p.chunks = divide_up(pixel_tiles, p.tiles_per_chunk);
  return p;
}

inline size_t workspace_bytes(const ActivationGradPlan& p, const ActivationGrad& a) {
  return a.db ? p.chunks * a.channels * accumulator_bytes(a.dtype) : 0;
}

// Bytes from one group's operands to the next group's.
struct GroupSteps {
  int64_t a[kSources] = {}, b[kSources] = {}, c = 0, z = 0, residual = 0, bias = 0;
};

// Fills `steps`; whether all groups lie at these distances.
inline bool equally_spaced(const Gemm* gemms, int64_t count, GroupSteps& steps) {
  bool equal = true;
  const auto step = [&](auto pointer_of, int64_t& bytes) {
    const auto address = [&](int64_t i) { return reinterpret_cast<int64_t>(pointer_of(gemms[i])); };
    bytes = count > 1 ? address(1) - address(0) : 0;
    for (int64_t i = 2; i < count; ++i) equal = equal && address(i) == address(0) + i * bytes;
  };
  for (int s = 0; s < gemms->segments; ++s) {
    step([s](const Gemm& g) { return g.segment[s].a.data; }, steps.a[s]);
    step([s](const Gemm& g) { return g.segment[s].b.data; }, steps.b[s]);
  }
  step([](const Gemm& g) { return g.c.data; }, steps.c);
  step([](const Gemm& g) { return g.z.data; }, steps.z);
  step([](const Gemm& g) { return g.residual.data; }, steps.residual);
  step([](const Gemm& g) { return g.bias; }, steps.bias);
  return equal;
}

}  // namespace pw
