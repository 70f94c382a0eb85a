// The shared memory of a block of gemm_lean.
#pragma once
#include "gate.cuh"
#include "mma_traits.cuh"

namespace pw {

// What a tile ends with: each warp's sums, 16 rows after another.
template <class Traits>
struct LeanOutput {
  static constexpr int kTileM = Traits::kTileM, kTileN = Traits::kTileN, kThreads = Traits::kThreads;
  static constexpr int kPitch = Traits::kWarpN + 8;  // floats: rows of four lanes each are stored without conflicts
  alignas(16) float sum[kThreads / 32][16][kPitch];
  alignas(16) float bias[2][kTileM > kTileN ? kTileM : kTileN];  // of this tile and, where it has others, the next
  float row_sum[kThreads / kTileM][kTileM];
};

template <class Traits>
struct LeanShared {
  using TileA = typename Traits::TileA;
  using TileB = typename Traits::TileB;

  struct Plain {
    TileA a[kStages];
    TileB b[kStages];
    LeanOutput<Traits> output;
  };
  // What a launch asks for where an operand has a gate.
  struct Masked : Plain {
    static constexpr int kA = MaskTile<TileA>::kWords, kB = MaskTile<TileB>::kWords;
    alignas(16) uint32_t mask[kStages][kA > kB ? kA : kB];
  };

  // Stages; then, where W stays, a tile of it for each step.
  PW_HD static size_t stage_bytes(const Gemm& g) { return g.gate.mask.words ? sizeof(Masked) : sizeof(Plain); }
  static size_t bytes(const Gemm& g, const GemmPlan& p) {
    const size_t tile = g.pixels == Pixels::on_n ? sizeof(TileA) : sizeof(TileB);
    return stage_bytes(g) + (p.weight_stays() ? p.steps * tile : 0);
  }

  PW_DEVICE static Plain& plain() { return shared_memory<Plain>(); }
  PW_DEVICE static Masked& masked() { return shared_memory<Masked>(); }
};

// An operand's tile of a step: in a stage or, where W stays, for good.
template <class Traits>
struct LeanTiles {
  using Shared = LeanShared<Traits>;
  using TileA = typename Traits::TileA;
  using TileB = typename Traits::TileB;
  char *first_a, *first_b;
  bool a_stays, b_stays;

  PW_DEVICE LeanTiles(const Gemm& g, const GemmPlan& p)
      : a_stays(p.weight_stays() && g.pixels == Pixels::on_n), b_stays(p.weight_stays() && g.pixels == Pixels::on_m) {
    auto& shared = Shared::plain();
    char* const weight = reinterpret_cast<char*>(&shared) + Shared::stage_bytes(g);
    first_a = shared_address(a_stays ? weight : reinterpret_cast<char*>(shared.a));
    first_b = shared_address(b_stays ? weight : reinterpret_cast<char*>(shared.b));
  }
  PW_DEVICE TileA& a(int stage, int step) const { return reinterpret_cast<TileA*>(first_a)[a_stays ? step : stage]; }
  PW_DEVICE TileB& b(int stage, int step) const { return reinterpret_cast<TileB*>(first_b)[b_stays ? step : stage]; }
};

}  // namespace pw
