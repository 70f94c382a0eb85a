// C = activation(A B + bias + residual) on the tensor cores: fp16, bf16 and float32, any strides and alignment.
//
// A block computes a tile of C in steps of kDepth values of k, which pass through kStages stages of shared memory: the
// copies of the next two steps are under way while one is multiplied. Each operand keeps the direction in which it is
// contiguous in memory, so that copies are as wide as its alignment allows; no layout is ever converted. 16-bit
// elements that lie on their own (49 pixels, 3 channels, stride 2 in NCHW) are copied one by one.
//
// Where an operand has a gate, the saved tensor, or its mask, passes through stages of its own beside dY, and dZ takes
// dY's place before the stage is multiplied.
//
// Where the plan says so, W's tile of every step stays in shared memory: blocks that go on to other pixels with the
// same channels copy it once.
#pragma once
#include "gate.cuh"
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
  // What a launch asks for where an operand has a gate.
  struct GatedShared : Shared {
    union {
      Operand<TileA> saved_a;
      Operand<TileB> saved_b;
    };
  };
  // And where the gate reads a mask.
  struct MaskedShared : Shared {
    static constexpr int kA = MaskTile<TileA>::kWords, kB = MaskTile<TileB>::kWords;
    uint32_t mask[kStages][kA > kB ? kA : kB];
  };

  // Stages and tables; then, where W stays, a tile of it for each step.
  PW_HD static size_t stage_bytes(const Gemm& g) {
    return g.gate.mask.words ? sizeof(MaskedShared) : g.gate.saved.data ? sizeof(GatedShared) : sizeof(Shared);
  }
  static size_t shared_bytes(const Gemm& g, const GemmPlan& p) {
    const size_t tile = g.pixels == Pixels::on_n ? sizeof(TileA) : sizeof(TileB);
    return stage_bytes(g) + (p.weight_stays() ? p.steps * tile : 0);
  }

  const Gemm& g;
  const GemmLaunch& launch;
  Shared& shared;

  PW_DEVICE bool has_saved() const { return g.gate.saved.data; }
  PW_DEVICE static GatedShared& gated() { return shared_memory<GatedShared>(); }
  PW_DEVICE static MaskedShared& masked() { return shared_memory<MaskedShared>(); }

  // An operand's tile of a step: in a stage, or for good. One address, for a choice between two takes registers.
  template <class Tile>
  PW_DEVICE Tile& tile(Operand<Tile>& operand, bool is_weight, int stage, int step) const {
    char* const start = reinterpret_cast<char*>(&shared);
    const bool stays = is_weight && launch.plan.weight_stays();
    const int first = stays ? int(stage_bytes(g)) : int(reinterpret_cast<char*>(operand.stage) - start);
    return reinterpret_cast<Tile*>(start + first)[stays ? step : stage];
  }
  PW_DEVICE TileA& tile_a(int stage, int step) const {
    return tile(shared.stages.a, g.pixels == Pixels::on_n, stage, step);
  }
  PW_DEVICE TileB& tile_b(int stage, int step) const {
    return tile(shared.stages.b, g.pixels == Pixels::on_m, stage, step);
  }
  PW_DEVICE bool weight_is_there() const { return launch.plan.weight_stays() && !shared.work.other_weight; }

  PW_DEVICE void fill_step(const At& at, int slot) {
    const Segment& s = g.segment[at.segment];
    const Matrix& saved = g.gate.saved;
    const int operand = thread_index() / kDepth;  // one for each kDepth threads
    if (operand > 2 || (operand == 2 && !has_saved())) return;
    using Table = int64_t[kDepth];
    Table* table = operand == 0 ? &shared.stages.a.k[slot] : &shared.stages.b.k[slot];
    const Steps* steps = operand == 0 ? &s.a.col : &s.b.row;
    if (operand == 2) {
      table = g.gate_on_a() ? &gated().saved_a.k[slot] : &gated().saved_b.k[slot];
      steps = g.gate_on_a() ? &saved.col : &saved.row;
    }
    fill_offsets<kDepth, kDepth>(*table, s.k, *steps, at.k);
  }

  PW_DEVICE void fill_segment(const At& at) {
    const Segment& s = g.segment[at.segment];
    const Matrix& saved = g.gate.saved;
    fill_offsets<kTileM, kThreads>(shared.stages.a.x[at.table], g.m, s.a.row, shared.work.m0);
    fill_offsets<kTileN, kThreads>(shared.stages.b.x[at.table], g.n, s.b.col, shared.work.n0);
    if (has_saved() && g.gate_on_a())
      fill_offsets<kTileM, kThreads>(gated().saved_a.x[at.table], g.m, saved.row, shared.work.m0);
    else if (has_saved())
      fill_offsets<kTileN, kThreads>(gated().saved_b.x[at.table], g.n, saved.col, shared.work.n0);
  }

  // Starts the copies of a step of one operand, and by the same code of what was saved beside it.
  template <class Tile, class Saved>
  PW_DEVICE void start_operand(const At& at, int slot, int stage, const OperandAccess& access, void* data, int64_t step,
                               int64_t left_x, Operand<Tile>& operand, Tile& tile, bool has_saved, Saved saved) {
    const int64_t left_k = g.segment[at.segment].k.count() - at.k;
#pragma unroll 1
    for (int i = 0; i <= has_saved; ++i) {
      Operand<Tile>& offsets = i ? saved() : operand;
      const T* from = i ? Operands<T>::moved(g.gate.saved.data, launch.groups.saved, shared.work.group)
                        : Operands<T>::moved(data, step, shared.work.group);
      copy_operand<kThreads>(access.bytes, from, offsets.x[at.table], offsets.k[slot], left_x, left_k,
                             i ? saved().stage[stage] : tile);
    }
  }

  // `step`: of all along k of this share
  PW_DEVICE void start_copies(const At& at, int slot, int stage, int step) {
    const Segment& s = g.segment[at.segment];
    if (!weight_is_there() || g.pixels != Pixels::on_n)
      start_operand(at, slot, stage, launch.plan.access.a, s.a.data, launch.groups.a[at.segment],
                    g.m.count() - shared.work.m0, shared.stages.a, tile_a(stage, step), has_saved() && g.gate_on_a(),
                    [&]() -> Operand<TileA>& { return gated().saved_a; });
    if (!weight_is_there() || g.pixels != Pixels::on_m)
      start_operand(at, slot, stage, launch.plan.access.b, s.b.data, launch.groups.b[at.segment],
                    g.n.count() - shared.work.n0, shared.stages.b, tile_b(stage, step), has_saved() && !g.gate_on_a(),
                    [&]() -> Operand<TileB>& { return gated().saved_b; });
    if (!g.gate.mask.words) return;
    const auto start = [&](auto& operand, int64_t x0) {
      start_mask<kThreads>(g.gate.mask, operand.stage[stage], operand.x[at.table], operand.k[slot], x0, at.k,
                           masked().mask[stage]);
    };
    if (g.gate_on_a())
      start(shared.stages.a, shared.work.m0);
    else
      start(shared.stages.b, shared.work.n0);
  }

  // `step`: of all along k
  PW_DEVICE void apply_gate(int stage, int step) {
    const auto by_mask = [&](auto& dy) {
      apply_mask<kThreads>(g.gate.activation, dy, masked().mask[stage], step % 2 * kDepth % 32);
    };
    if (g.gate.mask.words && g.gate_on_a())
      by_mask(shared.stages.a.stage[stage]);
    else if (g.gate.mask.words)
      by_mask(shared.stages.b.stage[stage]);
    else if (g.gate_on_a())
      pw::apply_gate<kThreads>(g.gate.activation, shared.stages.a.stage[stage], gated().saved_a.stage[stage]);
    else
      pw::apply_gate<kThreads>(g.gate.activation, shared.stages.b.stage[stage], gated().saved_b.stage[stage]);
  }

  // The sum over this split's share of k, and this thread's part of a row of A.
  PW_DEVICE void accumulate(Sums& sum, float& rows) {
    const int64_t first = shared.work.split * launch.plan.steps_per_split;
    const int64_t rest = launch.plan.steps - first, share = launch.plan.steps_per_split;
    At load_at(g, first, rest < share ? rest : share);  // the step whose offsets are in the tables
    if (load_at.left <= 0) return;
    const int steps = int(load_at.left);
    // Starts the copies of a step, whose offsets are in table `slot`. Ends with the other table being filled for the
    // step after it, for all to see after the next barrier.
    const auto load_next = [&](int slot, int stage) {
      if (load_at.left > 0) {
        start_copies(load_at, slot, stage, steps - load_at.left);
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
      if (g.gate.present()) {
        apply_gate(stage, int(shared.work.split * launch.plan.steps_per_split) + step);
        sync_threads();  // dZ is complete
      }
      if (adds_rows(g, shared.work)) rows += add_row<kThreads>(tile_a(stage, step));
      if constexpr (Multiply::kPromotes) {
        multiply_tiles<Traits>(tile_a(stage, step), tile_b(stage, step), part);
        if (step % kPromoteSteps == kPromoteSteps - 1 || step + 1 == steps) move_sums<Traits>(part, sum);
      } else {
        multiply_tiles<Traits>(tile_a(stage, step), tile_b(stage, step), sum);
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    sync_threads();  // the stages' memory becomes the output's
  }
};

template <class Traits>
PW_KERNEL(Traits::kThreads, Traits::kMmaBlocks)
gemm_mma(PW_PARAMETER Gemm g, PW_PARAMETER GemmLaunch launch) {
  using Kernel = GemmMma<Traits>;
  Kernel kernel{g, launch, shared_memory<typename Kernel::Shared>()};
  for (int turn = 0;; ++turn) {  // one register, where `work` would take two
    const int64_t work = block_index() + turn * grid_size();
    if (work >= launch.plan.work()) break;
    typename Kernel::Sums sum = {};
    float rows = 0;
    select_work(g, launch.plan, work, turn == 0, kernel.shared.work);
    kernel.accumulate(sum, rows);
    MmaWriter<Traits>{g, launch, kernel.shared.work, kernel.shared.output}.write(sum, rows);
  }
}

}  // namespace pw
