// C = activation(A B + bias + residual) on the tensor cores: fp16, bf16 and float32, any strides and alignment. What
// gemm_lean does not compute: more than 2^31 elements, four dimensions, a bias or a W that lies as in no layout.
//
// A block computes a tile of C in steps of kDepth values of k, which pass through kStages stages of shared memory: the
// copies of the next two steps are under way while one is multiplied. Each operand keeps the direction in which it is
// contiguous in memory, so that copies are as wide as its alignment allows; no layout is ever converted. 16-bit
// elements that lie on their own (49 pixels, 3 channels, stride 2 in NCHW) are copied one by one.
#pragma once
#include "mma_multiply.cuh"
#include "mma_output.cuh"
#include "position.cuh"
#include "work.cuh"

namespace pw {

template <class Traits>
struct GemmMma {
  using T = typename Traits::T;
  using Multiply = typename Traits::Multiply;
  using TileA = typename Traits::TileA;
  using TileB = typename Traits::TileB;
  static constexpr int kThreads = Traits::kThreads, kTileM = Traits::kTileM, kTileN = Traits::kTileN;
  static constexpr int kDepth = TileA::kDepth;
  static constexpr int kPromoteSteps = 64 / kDepth;  // of STRICT, see mma.cuh
  using Sums = typename Traits::Sums;
  using At = Position<kDepth>;

  // An operand in shared memory, and where its elements lie outside.
  template <class Tile>
  struct Operand {
    Tile stage[kStages];
    int64_t k[2][kDepth];       // offsets, by step
    int64_t x[2][Tile::kSize];  // and by segment
  };
  struct Stages {
    Operand<TileA> a;
    Operand<TileB> b;
  };
  struct Shared {
    Work work;
    union {
      Stages stages;
      MmaOutput<Traits> output;
    };
  };
  const Gemm& g;
  const GemmLaunch& launch;
  Shared& shared;

  PW_DEVICE void fill_step(const At& at, int slot) {
    const Segment& s = g.segment[at.segment];
    const int operand = thread_index() / kDepth;  // one for each kDepth threads
    if (operand == 0)
      fill_offsets<kDepth, kDepth>(shared.stages.a.k[slot], s.k, s.a.col, at.k);
    else if (operand == 1)
      fill_offsets<kDepth, kDepth>(shared.stages.b.k[slot], s.k, s.b.row, at.k);
  }

  PW_DEVICE void fill_segment(const At& at) {
    const Segment& s = g.segment[at.segment];
    fill_offsets<kTileM, kThreads>(shared.stages.a.x[at.table], g.m, s.a.row, shared.work.m0);
    fill_offsets<kTileN, kThreads>(shared.stages.b.x[at.table], g.n, s.b.col, shared.work.n0);
  }

  // Starts the copies of a step of one operand.
  template <class Tile>
  PW_DEVICE void start_operand(const At& at, int slot, int stage, const OperandAccess& access, void* data, int64_t step,
                               int64_t left_x, Operand<Tile>& operand) {
    copy_operand<kThreads>(access.bytes, Operands<T>::moved(data, step, shared.work.group), operand.x[at.table],
                           operand.k[slot], left_x, g.segment[at.segment].k.count() - at.k, operand.stage[stage]);
  }

  PW_DEVICE void start_copies(const At& at, int slot, int stage) {
    const Segment& s = g.segment[at.segment];
    start_operand(at, slot, stage, launch.plan.access.a, s.a.data, launch.groups.a[at.segment],
                  g.m.count() - shared.work.m0, shared.stages.a);
    start_operand(at, slot, stage, launch.plan.access.b, s.b.data, launch.groups.b[at.segment],
                  g.n.count() - shared.work.n0, shared.stages.b);
  }

  // The sum over this split's share of k.
  PW_DEVICE void accumulate(Sums& sum) {
    const int64_t first = shared.work.split * launch.plan.steps_per_split;
    const int64_t rest = launch.plan.steps - first, share = launch.plan.steps_per_split;
    At load_at(g, first, rest < share ? rest : share);  // the step whose offsets are in the tables
    if (load_at.left <= 0) return;
    const int steps = int(load_at.left);
    // Starts the copies of a step, whose offsets are in table `slot`. Ends with the other table being filled for the
    // step after it, for all to see after the next barrier.
    const auto load_next = [&](int slot, int stage) {
      if (load_at.left > 0) {
        start_copies(load_at, slot, stage);
        if (load_at.advance(g)) fill_segment(load_at);
        if (load_at.left > 0) fill_step(load_at, slot ^ 1);
      }
      copy_async_commit();
    };
    fill_segment(load_at);
    fill_step(load_at, 0);
#pragma unroll 1
    for (int ahead = 0; ahead < kStages - 1; ++ahead) {
      sync_threads();  // the tables are filled
      load_next(ahead % 2, ahead);
    }
    Sums part = {};
    int stage = 0;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      copy_async_wait<kStages - 2>();
      sync_threads();  // the stage is complete, the one before has been read, and the tables are filled
      load_next((step + kStages - 1) % 2, stage == 0 ? kStages - 1 : stage - 1);
      const T* const a = &shared.stages.a.stage[stage].data[0][0] + first_of_a<Traits>();
      const T* const b = &shared.stages.b.stage[stage].data[0][0] + first_of_b<Traits>();
      if constexpr (Multiply::kPromotes) {
        multiply_tiles<Traits>(a, b, part);
        if (step % kPromoteSteps == kPromoteSteps - 1 || step + 1 == steps) move_sums<Traits>(part, sum);
      } else {
        multiply_tiles<Traits>(a, b, sum);
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    sync_threads();  // the stages' memory becomes the output's
  }
};

template <class Traits>
PW_KERNEL(Traits::kThreads, Traits::kBlocks)
gemm_mma(PW_PARAMETER Gemm g, PW_PARAMETER GemmLaunch launch) {
  using Kernel = GemmMma<Traits>;
  Kernel kernel{g, launch, shared_memory<typename Kernel::Shared>()};
  for (int turn = 0;; ++turn) {  // one register, where `work` would take two
    const int64_t work = block_index() + turn * grid_size();
    if (work >= launch.plan.work()) break;
    typename Kernel::Sums sum = {};
    select_work(g, launch.plan, work, kernel.shared.work);
    kernel.accumulate(sum);
    MmaWriter<Traits>{g, launch, kernel.shared.work, kernel.shared.output}.write(sum);
  }
}

}  // namespace pw
