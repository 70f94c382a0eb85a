// What a plan would take on an H200.
#pragma once
#include "../activation.h"
#include "tiling.h"

namespace pw {

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
inline double predict(const Gemm& g, const GemmPlan& p, const Tile& tile, int64_t multiprocessors) {
  const Traffic moved = traffic(g, p);
  const int gate = gate_side(g, tile);
  const bool stays = p.weight_stays();
  const double share = stays ? double(p.weight_blocks) : double(multiprocessors) * blocks_held(g, p.lean, tile);
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

}  // namespace pw
