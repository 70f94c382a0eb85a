// The shared memory of a block of gemm_mma.
#pragma once
#include "copies.cuh"
#include "gate.cuh"
#include "mma_output.cuh"

namespace pw {

constexpr int kStages = 3;

template <class Traits>
struct MmaShared {
  using TileA = typename Traits::TileA;
  using TileB = typename Traits::TileB;

  // The steps of an operand that are under way, and where its rows lie; the tables take turns.
  template <class Tile>
  struct Operand {
    Tile stage[kStages];
    typename Copies<Traits::kThreads, Tile>::Table rows[2];
  };
  struct Plain {
    Operand<TileA> a;
    Operand<TileB> b;
    MmaOutput<Traits> output;
  };
  // What a launch asks for where an operand has a gate.
  struct Gated : Plain {
    union {
      Operand<TileA> saved_a;
      Operand<TileB> saved_b;
    };
  };
  // And where the gate reads a mask.
  struct Masked : Plain {
    static constexpr int kA = MaskTile<TileA>::kWords, kB = MaskTile<TileB>::kWords;
    alignas(16) uint32_t mask[kStages][kA > kB ? kA : kB];
  };

  // Stages and tables; then, where W stays, a tile of it for each step.
  PW_HD static size_t stage_bytes(const Gemm& g) {
    return g.gate.mask.words ? sizeof(Masked) : g.gate.saved.data ? sizeof(Gated) : sizeof(Plain);
  }
  static size_t bytes(const Gemm& g, const GemmPlan& p) {
    const size_t tile = g.pixels == Pixels::on_n ? sizeof(TileA) : sizeof(TileB);
    return stage_bytes(g) + (p.weight_stays() ? p.steps * tile : 0);
  }

  PW_DEVICE static Plain& plain() { return shared_memory<Plain>(); }
  PW_DEVICE static Gated& gated() { return shared_memory<Gated>(); }
  PW_DEVICE static Masked& masked() { return shared_memory<Masked>(); }
};

template <class Traits>
PW_DEVICE MmaOutput<Traits>& output() {
  return MmaShared<Traits>::plain().output;
}

// An operand's tile of a step: in a stage or, where W stays, for good.
template <class Traits>
struct MmaTiles {
  using Shared = MmaShared<Traits>;
  using TileA = typename Traits::TileA;
  using TileB = typename Traits::TileB;
  char *first_a, *first_b;
  bool a_stays, b_stays;

  PW_DEVICE MmaTiles(const Gemm& g, const GemmPlan& p)
      : a_stays(p.weight_stays() && g.pixels == Pixels::on_n), b_stays(p.weight_stays() && g.pixels == Pixels::on_m) {
    auto& shared = Shared::plain();
    char* const weight = reinterpret_cast<char*>(&shared) + Shared::stage_bytes(g);
    first_a = shared_address(a_stays ? weight : reinterpret_cast<char*>(shared.a.stage));
    first_b = shared_address(b_stays ? weight : reinterpret_cast<char*>(shared.b.stage));
  }
  PW_DEVICE TileA& a(int stage, int step) const { return reinterpret_cast<TileA*>(first_a)[a_stays ? step : stage]; }
  PW_DEVICE TileB& b(int stage, int step) const { return reinterpret_cast<TileB*>(first_b)[b_stays ? step : stage]; }
};

}  // namespace pw
