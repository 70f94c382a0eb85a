// C = activation(A B + bias + residual) on the tensor cores: fp16, bf16 and float32, any strides and alignment.
//
// A block computes tiles of C in steps of kDepth values of k, which pass through kStages stages of shared memory: the
// copies of the next two steps, also of the next tile's, are under way while one is multiplied or a tile written. Each
// operand keeps the direction in which it is contiguous in memory, so that copies are as wide as its alignment allows;
// no layout is ever converted. 16-bit elements that lie on their own (49 pixels, 3 channels, stride 2 in NCHW) are
// copied one by one.
//
// Where an operand has a gate, the saved tensor, or its mask, passes through stages of its own beside dY, and dZ takes
// dY's place before the stage is multiplied.
//
// Where the plan says so, W's tile of every step stays in shared memory: a block's tiles are of the same channels, and
// W is copied with the first one.
#pragma once
#include "gate.cuh"
#include "mma_output.cuh"
#include "mma_stream.cuh"

namespace pw {

template <class Traits>
struct GemmMma {
  using T = typename Traits::T;
  using Multiply = typename Traits::Multiply;
  using TileA = typename Traits::TileA;
  using TileB = typename Traits::TileB;
  using Shared = MmaShared<Traits>;
  static constexpr int kThreads = Traits::kThreads, kDepth = TileA::kDepth;
  static constexpr int kBlocksM = Traits::kBlocksM, kBlocksN = Traits::kBlocksN;
  static constexpr int kPromoteSteps = 64 / kDepth;  // of STRICT, see mma.cuh
  using Sums = typename Traits::Sums;

  const Gemm& g;
  const GemmLaunch& launch;

  // `step`: of all along k
  PW_DEVICE void apply_gate(int stage, int step) const {
    auto& shared = Shared::plain();
    const auto by_mask = [&](auto& dy) {
      apply_mask<kThreads>(g.gate.activation, dy, Shared::masked().mask[stage], step % 2 * kDepth % 32);
    };
    if (g.gate.mask.words && g.gate_on_a())
      by_mask(shared.a.stage[stage]);
    else if (g.gate.mask.words)
      by_mask(shared.b.stage[stage]);
    else if (g.gate_on_a())
      pw::apply_gate<kThreads>(g.gate.activation, shared.a.stage[stage], Shared::gated().saved_a.stage[stage]);
    else
      pw::apply_gate<kThreads>(g.gate.activation, shared.b.stage[stage], Shared::gated().saved_b.stage[stage]);
  }

  // sum += A B over the kDepth values of k of a stage
  PW_DEVICE static void multiply(const TileA& a_tile, const TileB& b_tile, Sums& sum) {
    const int warp_m = thread_index() / 32 % Traits::kWarpsM, warp_n = thread_index() / 32 / Traits::kWarpsM;
#pragma unroll(Multiply::kPromotes ? 1 : kDepth / Multiply::kDepth)
    for (int k = 0; k < kDepth; k += Multiply::kDepth) {
      typename Multiply::A a[kBlocksM];
#pragma unroll
      for (int i = 0; i < kBlocksM; ++i) Multiply::load(a_tile, warp_m * Traits::kWarpM + i * 16, k, a[i]);
#pragma unroll
      for (int j = 0; j < kBlocksN; j += 2) {
        typename Multiply::B b[2];
        Multiply::load(b_tile, warp_n * Traits::kWarpN + j * 8, k, b);
#pragma unroll
        for (int i = 0; i < kBlocksM; ++i)
#pragma unroll
          for (int side = 0; side < 2; ++side) Multiply::multiply(sum[i][j + side], a[i], b[side]);
      }
    }
  }

  PW_DEVICE static void move(Sums& from, Sums& to) {
#pragma unroll
    for (int i = 0; i < kBlocksM; ++i)
#pragma unroll
      for (int j = 0; j < kBlocksN; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) to[i][j][e] += from[i][j][e], from[i][j][e] = 0;
  }

  PW_DEVICE void run() const {
    const MmaTiles<Traits> tiles(g, launch.plan);
    MmaStream<Traits> stream(g, launch, tiles);
    MmaWriter<Traits> writer{g, launch, Shared::plain().output};
    int stage = 0;
#pragma unroll 1
    for (int ahead = 0; ahead < kStages - 1; ++ahead) {
      sync_threads();  // the tables are filled
      stream.next(ahead);
    }
#pragma unroll 1
    for (int turn = 0;; ++turn) {
      const int64_t index = block_index() + turn * grid_size();
      if (index >= launch.plan.work()) break;
      int steps, first = 0;
      bool adds;
      {
        const Work work = find_work(g, launch.plan, index);
        steps = steps_of(launch.plan, work.split), adds = adds_rows(g, work);
        if (g.gate.present()) first = int(work.split * launch.plan.steps_per_split);
        writer.prepare(work);
      }
      Sums sum = {}, part = {};
      float rows = 0;
      if (steps <= 0) sync_threads();  // the biases are there
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        copy_async_wait<kStages - 2>();
        sync_threads();  // the stage is complete, the one before has been read, and the tables are filled
        stream.next(stage == 0 ? kStages - 1 : stage - 1);
        if (g.gate.present()) {
          apply_gate(stage, first + step);
          sync_threads();  // dZ is complete
        }
        if (adds) rows += add_row<kThreads>(tiles.a(stage, step));
        if constexpr (Multiply::kPromotes) {
          multiply(tiles.a(stage, step), tiles.b(stage, step), part);
          if (step % kPromoteSteps == kPromoteSteps - 1 || step + 1 == steps) move(part, sum);
        } else {
          multiply(tiles.a(stage, step), tiles.b(stage, step), sum);
        }
        stage = stage + 1 == kStages ? 0 : stage + 1;
      }
      writer.write(find_work(g, launch.plan, index), sum, rows);  // anew, for registers are short
    }
  }
};

template <class Traits>
PW_KERNEL(Traits::kThreads, Traits::kBlocks)
gemm_mma(PW_PARAMETER Gemm g, PW_PARAMETER GemmLaunch launch) {
  GemmMma<Traits>{g, launch}.run();
}

}  // namespace pw
