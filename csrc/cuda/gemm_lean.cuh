// C = activation(A B + bias + residual) on the tensor cores: fp16, bf16 and float32, at offsets that fit 32 bits
// (is_lean() in plan.h).
//
// A block computes a tile of C in steps of 128 bytes of each row, which pass through two stages of shared memory: the
// next step, of the next tile too, is copied while one is multiplied. Each operand keeps the direction in which it is
// contiguous in memory; no layout is ever converted. Where all is read 16 bytes at a time (kWide), a thread keeps one
// offset for its vectors, and a step moves the operands' bases; elsewhere each vector has an offset of its own.
//
// Where the plan says so, W's tile of every step stays in shared memory: blocks go on to other pixels with the same
// channels. dZ takes the place of dY, by its mask, before a stage is multiplied.
#pragma once
#include "lean_output.cuh"
#include "mma_multiply.cuh"

namespace pw {

template <class Traits>
struct GemmLean {
  using T = typename Traits::T;
  using TileA = typename Traits::TileA;
  using Multiply = typename Traits::Multiply;
  using Shared = LeanShared<Traits>;
  using Sums = typename Traits::Sums;
  static constexpr int kThreads = Traits::kThreads;
  static constexpr int kPromoteSteps = 64 / Traits::kDepth;

  const LeanLaunch& l;

  PW_DEVICE void run() const {
    LeanStream<Traits> stream{l};
    LeanWriter<Traits> writer{l, Shared::plain().output};
    const uint32_t from_a = pinned(l.a.first + first_of_a<Traits>() * sizeof(T));
    const uint32_t from_b = pinned(l.b.first + first_of_b<Traits>() * sizeof(T));
    Sums sum, part = {};
    float rows = 0;
    uint32_t index = block_index();
    int stage = 0, step = 1 - Traits::kStages, steps = 0;  // the first ones only copy
    bool adds = false;
#pragma unroll 1
    for (;;) {
      if (step == 0) {  // a tile begins
        if (index >= l.work) break;
        const LeanWork w = l.find(index, Traits::kTileM, Traits::kTileN);
        steps = l.steps_of(w.split), adds = l.adds_rows(w);
        writer.start(w, sum);
        if (l.simple && l.residual.data)
          prefetch_residual<T>(l, w.group, w.m0 + writer.row_of_warp(), w.n0 + writer.column_of_warp(), Traits::kWarpM);
      }
      copy_async_wait<Traits::kStages - 2>();
      sync_threads();  // the stage is complete, and the one before has been read
      stream.next(stage);
      stage = stage + 1 == Traits::kStages ? 0 : stage + 1;
      if (step < 0) {
        ++step;
        continue;
      }
      if (l.gated) {
        apply_gate(stage);
        sync_threads();  // dZ is complete
      }
      const uint32_t behind_a = stage * l.a.by_stage + step * l.a.by_step;
      const uint32_t behind_b = stage * l.b.by_stage + step * l.b.by_step;
      if (adds) rows += add_row<kThreads>(*shared_at<TileA>(l.a.first + behind_a));
      const int depth = step + 1 == steps ? l.last_depth : Traits::kDepth;
      const T* const a = shared_at<T>(from_a + behind_a);
      const T* const b = shared_at<T>(from_b + behind_b);
      if constexpr (Multiply::kPromotes) {
        multiply_tiles<Traits>(a, b, part, depth);
        if (step % kPromoteSteps == kPromoteSteps - 1 || step + 1 == steps) move_sums<Traits>(part, sum);
      } else {
        multiply_tiles<Traits>(a, b, sum, depth);
      }
      if (++step < steps) continue;
      writer.finish(l.find(index, Traits::kTileM, Traits::kTileN), sum, rows);
      index += uint32_t(grid_size()), step = 0, rows = 0;
    }
  }

  PW_DEVICE void apply_gate(int stage) const {
    if (l.gate_on_a)
      apply_mask<kThreads>(l.gate, Shared::plain().a[stage], Shared::masked().mask[stage]);
    else
      apply_mask<kThreads>(l.gate, Shared::plain().b[stage], Shared::masked().mask[stage]);
  }
};

template <class Traits>
PW_KERNEL(Traits::kThreads, Traits::kBlocks)
gemm_lean(PW_PARAMETER LeanLaunch launch) {
  GemmLean<Traits>{launch}.run();
}

}  // namespace pw
