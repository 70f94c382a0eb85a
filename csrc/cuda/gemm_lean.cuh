// gemm_mma without what few products need: every operand is read and written 16 bytes at a time, at offsets that fit 32
// bits (is_lean() in plan.h). What it computes, the tiles and the order of sums are the same.
//
// Where gemm_mma looks offsets up, a thread keeps those of its vectors, the same for all steps of a tile: a step moves
// the operands' bases.
#pragma once
#include "lean_output.cuh"
#include "mma_multiply.cuh"

namespace pw {

template <class Traits>
struct GemmLean {
  using T = typename Traits::T;
  using Multiply = typename Traits::Multiply;
  using TileA = typename Traits::TileA;
  using TileB = typename Traits::TileB;
  using Shared = LeanShared<Traits>;
  using Writer = LeanWriter<Traits>;
  using Sums = typename Traits::Sums;
  static constexpr int kThreads = Traits::kThreads, kDepth = TileA::kDepth;
  static constexpr int kPromoteSteps = 64 / kDepth;

  const Gemm& g;
  const GemmLaunch& launch;

  PW_DEVICE void finish(uint32_t index, const Sums& sum, float rows, Writer& writer) const {
    const LeanWork w = find_lean_work(g, launch.plan, index);
    float* partials = nullptr;
    if (launch.plan.splits > 1)
      partials = static_cast<float*>(launch.workspace) + w.split * (g.m.count() * partial_columns(g));
    if (g.row_sums && w.n0 == 0) writer.write_row_sums(w, rows, partials);
    if (partials)
      writer.write_partials(w, sum, partials);
    else
      writer.write(w, sum);
  }

  PW_DEVICE void run() const {
    const LeanTiles<Traits> tiles(g, launch.plan);
    LeanStream<Traits> stream{g, launch, tiles};
    Writer writer{g, launch, Shared::plain().output};
    Sums sum = {}, part = {};
    float rows = 0;
    uint32_t index = block_index();
    int stage = 0, step = 0, steps = 0, ahead = kStages - 1;
    bool adds = false;
#pragma unroll 1
    for (;;) {
      if (ahead == 0 && step == 0) {  // a tile begins
        if (index >= uint32_t(launch.plan.work())) break;
        const LeanWork w = find_lean_work(g, launch.plan, index);
        steps = steps_of(launch.plan, w.split), adds = g.row_sums && w.n0 == 0;
        writer.prepare(w);
      }
      copy_async_wait<kStages - 2>();
      sync_threads();  // the stage is complete, and the one before has been read
      if (ahead > 0) {
        stream.next(kStages - 1 - ahead), --ahead;
        continue;
      }
      stream.next(stage == 0 ? kStages - 1 : stage - 1);
      if (g.gate.mask.words) {
        const int skip =
            (launch.plan.splits == 1 ? step : step + split_of(index) * int(launch.plan.steps_per_split)) * kDepth % 32;
        if (g.gate_on_a())
          apply_mask<kThreads>(g.gate.activation, Shared::plain().a[stage], Shared::masked().mask[stage], skip);
        else
          apply_mask<kThreads>(g.gate.activation, Shared::plain().b[stage], Shared::masked().mask[stage], skip);
        sync_threads();  // dZ is complete
      }
      if (adds) rows += add_row<kThreads>(tiles.a(stage, step));
      if constexpr (Multiply::kPromotes) {
        multiply_tiles<Traits>(tiles.a(stage, step), tiles.b(stage, step), part);
        if (step % kPromoteSteps == kPromoteSteps - 1 || step + 1 == steps) move_sums<Traits>(part, sum);
      } else {
        multiply_tiles<Traits>(tiles.a(stage, step), tiles.b(stage, step), sum);
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
      if (++step < steps) continue;
      finish(index, sum, rows, writer);
      index += uint32_t(grid_size()), step = 0, rows = 0;
#pragma unroll
      for (int i = 0; i < Traits::kBlocksM; ++i)
#pragma unroll
        for (int j = 0; j < Traits::kBlocksN; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
    }
  }

  PW_DEVICE int split_of(uint32_t index) const { return find_lean_work(g, launch.plan, index).split; }
};

template <class Traits>
PW_KERNEL(Traits::kThreads, Traits::kBlocks)
gemm_lean(PW_PARAMETER Gemm g, PW_PARAMETER GemmLaunch launch) {
  GemmLean<Traits>{g, launch}.run();
}

}  // namespace pw
