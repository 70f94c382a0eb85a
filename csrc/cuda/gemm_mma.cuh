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
#include "mma.cuh"
#include "operand.cuh"
#include "position.cuh"
#include "work.cuh"

namespace pw {

constexpr int kStages = 3;

// Which kernel: how operands lie, and WARPS_M x WARPS_N warps of WARP_M x 32 elements of C each.
template <class T_, bool STRICT, bool A_ALONG_K, bool B_ALONG_K, int WARPS_M, int WARPS_N, int WARP_M>
struct MmaTraits {
  using T = T_;
  using Multiply = Mma<T, STRICT>;
  static constexpr int kWarpsM = WARPS_M, kWarpsN = WARPS_N, kWarpM = WARP_M, kWarpN = 32;
  static constexpr int kTileM = WARPS_M * WARP_M, kTileN = WARPS_N * kWarpN, kThreads = 32 * WARPS_M * WARPS_N;
  using TileA = OperandTile<T, kTileM, A_ALONG_K>;
  using TileB = OperandTile<T, kTileN, B_ALONG_K>;
  // Of a multiprocessor. The sums of the largest tile take half of the registers, those of STRICT twice as many.
  static constexpr int kBlocks = kThreads == 256 ? 2 : STRICT ? 3 : 4;
};

template <class Traits>
struct GemmMma {
  using T = typename Traits::T;
  using Multiply = typename Traits::Multiply;
  using TileA = typename Traits::TileA;
  using TileB = typename Traits::TileB;
  static constexpr int kThreads = Traits::kThreads, kTileM = Traits::kTileM, kTileN = Traits::kTileN;
  static constexpr int kDepth = TileA::kDepth;
  static constexpr int kBlocksM = Traits::kWarpM / 16, kBlocksN = Traits::kWarpN / 8;  // products of a warp
  static constexpr int kPromoteSteps = 64 / kDepth;                                    // of STRICT, see mma.cuh
  static constexpr int kPartRows = Traits::kWarpsM * 16;  // rows of C that are written together
  static constexpr int kRun = 16 / sizeof(T);             // elements of C that a thread writes at once, at most
  using Sums = float[kBlocksM][kBlocksN][4];
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
  struct Output {
    alignas(16) float sum[kPartRows][kTileN + 8];
    float bias[kTileM > kTileN ? kTileM : kTileN];
    float row_sum[kThreads / kTileM][kTileM];
    int64_t c_m[kTileM], c_n[kTileN], z_m[kTileM], z_n[kTileN], residual_m[kTileM], residual_n[kTileN];
  };
  struct Shared {
    Work work;
    union {
      Stages stages;
      Output output;
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
  const int warp_m = thread_index() / 32 % Traits::kWarpsM, warp_n = thread_index() / 32 / Traits::kWarpsM;

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

  // The blocks of the first column of tiles add up A's rows.
  PW_DEVICE bool adds_rows() const { return g.row_sums && shared.work.n0 == 0; }

  // sum += A B over the kDepth values of k of a stage
  PW_DEVICE void multiply(int stage, int step, Sums& sum) const {
    const TileA& a_tile = tile_a(stage, step);
    const TileB& b_tile = tile_b(stage, step);
    // The largest tile's sums leave no registers for the operands of two products at once.
#pragma unroll(Multiply::kPromotes || kBlocksM == 4 ? 1 : kDepth / Multiply::kDepth)
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
      if (adds_rows()) rows += add_row<kThreads>(tile_a(stage, step));
      if constexpr (Multiply::kPromotes) {
        multiply(stage, step, part);
        if (step % kPromoteSteps == kPromoteSteps - 1 || step + 1 == steps) move(part, sum);
      } else {
        multiply(stage, step, sum);
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    sync_threads();  // the stages' memory becomes the output's
  }

  PW_DEVICE void write_row_sums(float rows, float* partials) {
    Output& out = shared.output;
    const int64_t i = thread_index(), m = shared.work.m0 + i;
    out.row_sum[i / kTileM][i % kTileM] = rows;
    sync_threads();  // all parts of a row are there
    if (i >= kTileM || m >= g.m.count()) return;
    float sum = 0;
    for (int part = 0; part < kThreads / kTileM; ++part) sum += out.row_sum[part][i];
    if (partials)
      partials[m * partial_columns(g) + g.n.count()] = sum;
    else
      Operands<T>::moved(g.row_sums, launch.groups.row_sums, shared.work.group)[m] = narrow<T>(sum);
  }

  // Writes the tile part by part through shared memory, for each thread to write `RUN` neighbours.
  template <int RUN>
  PW_DEVICE void write_part(int part, const Operands<T>& to, float* partials) {
    constexpr int kRuns = kTileN / RUN;
    static_assert(kPartRows * kRuns % kThreads == 0, "all lanes of a warp make words together");
    Output& out = shared.output;
    const int64_t m_count = g.m.count(), n_count = g.n.count(), columns = partial_columns(g);
#pragma unroll 1
    for (int e = thread_index(); e < kPartRows * kRuns; e += kThreads) {
      const int row = e / kRuns, x = e % kRuns * RUN;
      const int y = row / 16 * Traits::kWarpM + part * 16 + row % 16;
      const int64_t m = shared.work.m0 + y, n = shared.work.n0 + x;
      const bool inside = m < m_count && n < n_count;
      uint32_t bits = 0;
      if (inside) {
        const int count = n_count - n < RUN ? int(n_count - n) : RUN;
        float v[RUN];
#pragma unroll
        for (int i = 0; i < RUN; ++i) v[i] = out.sum[row][x + i];
        if (partials) {
#pragma unroll
          for (int i = 0; i < RUN; ++i)
            if (i < count) partials[m * columns + n + i] = v[i];
          continue;
        }
        if (to.bias) {
#pragma unroll
          for (int i = 0; i < RUN; ++i) v[i] += out.bias[g.bias_on_m ? y : x + i];
        }
        bits = finish_run<T, RUN>(g, to, v, count,
                                  {out.c_m[y] + out.c_n[x], to.z ? out.z_m[y] + out.z_n[x] : 0,
                                   to.residual ? out.residual_m[y] + out.residual_n[x] : 0});
      }
      if (g.mask.words && !partials) {  // neighbouring lanes have the runs of a word
        bits = join_lanes<32 / RUN>(bits << x % 32);
        if (inside && x % 32 == 0) g.mask.words[m * g.mask.pitch + n / 32] = bits;
      }
    }
  }

  PW_DEVICE void write(const Sums& sum, float rows) {
    Output& out = shared.output;
    const Operands<T> to(g, launch.groups, shared.work.group);
    const int64_t m0 = shared.work.m0, n0 = shared.work.n0, m_count = g.m.count(), n_count = g.n.count();
    const auto fill = [&](const Matrix& matrix, int64_t (&on_m)[kTileM], int64_t (&on_n)[kTileN]) {
      fill_offsets<kTileM, kThreads>(on_m, g.m, matrix.row, m0);
      fill_offsets<kTileN, kThreads>(on_n, g.n, matrix.col, n0);
    };
    fill(g.c, out.c_m, out.c_n);
    if (to.z) fill(g.z, out.z_m, out.z_n);
    if (to.residual) fill(g.residual, out.residual_m, out.residual_n);
    if (to.bias)
      for (int i = thread_index(); i < (g.bias_on_m ? kTileM : kTileN); i += kThreads) {
        const int64_t at = (g.bias_on_m ? m0 : n0) + i;
        out.bias[i] = at < (g.bias_on_m ? m_count : n_count) ? widen(to.bias[at * g.bias_step]) : 0.0f;
      }
    const int64_t share = shared.work.group * launch.plan.splits + shared.work.split;
    float* partials =
        launch.plan.splits > 1 ? static_cast<float*>(launch.workspace) + share * m_count * partial_columns(g) : nullptr;
    const int run = partials ? 1 : launch.plan.access.c / int(sizeof(T));
    if (adds_rows()) write_row_sums(rows, partials);
    const int lane = thread_index() % 32;
#pragma unroll 1
    for (int part = 0; part < kBlocksM; ++part) {
#pragma unroll
      for (int i = 0; i < kBlocksM; ++i)  // registers have no index at run time, hence a comparison
        if (i == part)
#pragma unroll
          for (int j = 0; j < kBlocksN; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
              out.sum[warp_m * 16 + lane / 4 + e / 2 * 8][warp_n * Traits::kWarpN + j * 8 + lane % 4 * 2 + e % 2] =
                  sum[i][j][e];
      sync_threads();
      if (run == kRun)
        write_part<kRun>(part, to, partials);
      else if (run == kRun / 2)
        write_part<kRun / 2>(part, to, partials);
      else if (run == kRun / 4 && kRun > 4)
        write_part<kRun / 4>(part, to, partials);
      else
        write_part<1>(part, to, partials);
      sync_threads();  // the part has been read
    }
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
    float rows = 0;
    select_work(g, launch.plan, work, turn == 0, kernel.shared.work);
    kernel.accumulate(sum, rows);
    kernel.write(sum, rows);
  }
}

}  // namespace pw
