// The shared memory of a block of gemm_lean.
#pragma once
#include "gate.cuh"
#include "lean.h"
#include "mma_traits.cuh"

namespace pw {

// So many bytes from its beginning.
template <class T>
PW_DEVICE T* shared_at(uint32_t bytes) {
  return reinterpret_cast<T*>(&shared_memory<char>() + bytes);
}

// 16 rows of a warp's sums. With 8 floats more, rows of four lanes each are stored without conflicts.
using LeanSlab = float[16][kWarpColumns + 8];

// What a tile ends with: each warp's sums, 16 rows after another.
template <class Traits>
struct LeanOutput {
  static constexpr int kTileM = Traits::kTileM, kThreads = Traits::kThreads;
  alignas(16) LeanSlab sum[kThreads / 32];
  float row_sum[kThreads / kTileM][kTileM];
};

template <class Traits>
struct LeanShared {
  using TileA = typename Traits::TileA;
  using TileB = typename Traits::TileB;

  struct Plain {
    TileA a[Traits::kStages];
    TileB b[Traits::kStages];
    LeanOutput<Traits> output;
  };
  // What a launch asks for where an operand has a gate.
  struct Masked : Plain {
    static constexpr int kA = MaskTile<TileA>::kWords, kB = MaskTile<TileB>::kWords;
    alignas(16) uint32_t mask[Traits::kStages][kA > kB ? kA : kB];
  };

  // Stages; then, where W stays, a tile of it for each step. Tells the launch, and what to ask for.
  static size_t place(LeanLaunch& l) {
    const size_t stages = l.gated ? sizeof(Masked) : sizeof(Plain);
    const auto of = [&](bool stays, size_t first, size_t tile) {
      return stays ? LeanPlace{uint32_t(stages), 0, uint32_t(tile)} : LeanPlace{uint32_t(first), uint32_t(tile), 0};
    };
    l.a = of(l.a_stays, offsetof(Plain, a), sizeof(TileA)), l.b = of(l.b_stays, offsetof(Plain, b), sizeof(TileB));
    return stages + l.steps * (l.a.by_step + l.b.by_step);
  }

  PW_DEVICE static Plain& plain() { return shared_memory<Plain>(); }
  PW_DEVICE static Masked& masked() { return shared_memory<Masked>(); }
};

}  // namespace pw
