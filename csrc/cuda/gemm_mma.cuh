// C = activation(A B + bias + residual) on the tensor cores: fp16, bf16 and float32, any strides and alignment.
//
// A block computes a tile of C in steps of kDepth values of k, which pass through kStages stages of shared memory: the
// copies of the next two steps are under way while one is multiplied. Each operand keeps the direction in which it is
// contiguous in memory, so that copies are as wide as its alignment allows; no layout is ever converted. 16-bit
// elements that lie on their own (49 pixels, 3 channels, stride 2 in NCHW) are copied one by one.
#pragma once
#include "epilogue.cuh"
#include "mma.cuh"
#include "offsets.cuh"
#include "position.cuh"
#include "work.cuh"

namespace pw {

constexpr int kStages = 3;

// A step of one operand in shared memory: rows of A or columns of B (x) by values of k. The padding puts what a warp
// reads at once into different banks.
template <class T, int SIZE, bool ALONG_K>
struct OperandTile {
  static constexpr bool kAlongK = ALONG_K;
  static constexpr int kSize = SIZE, kDepth = kStepBytes / sizeof(T);
  static constexpr int kPitch = ALONG_K ? kDepth + 16 / int(sizeof(T)) : SIZE + 8;
  alignas(16) T data[ALONG_K ? SIZE : kDepth][kPitch];

  PW_DEVICE T* at(int x, int k) { return ALONG_K ? &data[x][k] : &data[k][x]; }
  PW_DEVICE const T* at(int x, int k) const { return ALONG_K ? &data[x][k] : &data[k][x]; }
};

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

  struct Stages {
    TileA a[kStages];
    TileB b[kStages];
    int64_t a_k[2][kDepth], b_k[2][kDepth];  // offsets, by step
    int64_t a_m[2][kTileM], b_n[2][kTileN];  // and by segment
  };
  struct Output {
    alignas(16) float sum[kPartRows][kTileN + 8];
    float bias[kTileM > kTileN ? kTileM : kTileN];
    int64_t c_m[kTileM], c_n[kTileN], z_m[kTileM], z_n[kTileN], residual_m[kTileM], residual_n[kTileN];
  };
  struct Shared {
    Work work;
    union {
      Stages stages;
      Output output;
    };
  };

  const Gemm& g;
  const GemmLaunch& launch;
  Shared& shared;
  const int warp_m = thread_index() / 32 % Traits::kWarpsM, warp_n = thread_index() / 32 / Traits::kWarpsM;

  PW_DEVICE void fill_step(const At& at, int slot) {
    const Segment& s = g.segment[at.segment];
    const int i = thread_index() % kDepth;
    if (thread_index() < kDepth)
      shared.stages.a_k[slot][i] = offset_or_outside(s.k, s.a.col, at.k + i);
    else if (thread_index() < 2 * kDepth)
      shared.stages.b_k[slot][i] = offset_or_outside(s.k, s.b.row, at.k + i);
  }

  PW_DEVICE void fill_segment(const At& at) {
    const Segment& s = g.segment[at.segment];
    fill_offsets<kTileM, kThreads>(shared.stages.a_m[at.table], g.m, s.a.row, shared.work.m0);
    fill_offsets<kTileN, kThreads>(shared.stages.b_n[at.table], g.n, s.b.col, shared.work.n0);
  }

  // Copies a step of one operand, BYTES at a time. `left_x` and `left_k`: how many there are from the tile's start on.
  template <int BYTES, class Tile>
  PW_DEVICE static void copy(const T* data, const int64_t (&side)[Tile::kSize], const int64_t (&depth)[kDepth],
                             int64_t left_x, int64_t left_k, Tile& to) {
    constexpr int V = BYTES / sizeof(T), kRow = (Tile::kAlongK ? kDepth : Tile::kSize) / V;
    constexpr int kCount = Tile::kSize * kDepth / V;
    static_assert(kCount % kThreads == 0, "every thread copies as much");
#pragma unroll(BYTES == 2 ? 4 : 1)  // more addresses at once would take registers that the sums need
    for (int i = 0; i < kCount / kThreads; ++i) {
      const int e = thread_index() + i * kThreads, inner = e % kRow * V, outer = e / kRow;
      const int x = Tile::kAlongK ? outer : inner, k = Tile::kAlongK ? inner : outer;
      const bool inside = side[x] != kOutside && depth[k] != kOutside;
      const T* from = inside ? data + (side[x] + depth[k]) : data;
      if constexpr (BYTES == 2) {
        *to.at(x, k) = inside ? *from : T{};
      } else {
        const int64_t left = Tile::kAlongK ? left_k - k : left_x - x;
        copy_async<BYTES>(to.at(x, k), from, inside ? int(left < V ? left : V) * int(sizeof(T)) : 0);
      }
    }
  }

  template <class Tile>
  PW_DEVICE static void copy_as(int bytes, const T* data, const int64_t (&side)[Tile::kSize],
                                const int64_t (&depth)[kDepth], int64_t left_x, int64_t left_k, Tile& to) {
    if (bytes == 16)
      copy<16>(data, side, depth, left_x, left_k, to);
    else if (bytes == 8)
      copy<8>(data, side, depth, left_x, left_k, to);
    else if (bytes == 4 || sizeof(T) == 4)
      copy<4>(data, side, depth, left_x, left_k, to);
    else
      copy<sizeof(T)>(data, side, depth, left_x, left_k, to);
  }

  PW_DEVICE void start_copies(const At& at, int slot, int stage) {
    const Segment& s = g.segment[at.segment];
    Stages& to = shared.stages;
    const int64_t left_k = s.k.count() - at.k;
    copy_as(launch.plan.access.a.bytes, Operands<T>::moved(s.a.data, launch.groups.a[at.segment], shared.work.group),
            to.a_m[at.table], to.a_k[slot], g.m.count() - shared.work.m0, left_k, to.a[stage]);
    copy_as(launch.plan.access.b.bytes, Operands<T>::moved(s.b.data, launch.groups.b[at.segment], shared.work.group),
            to.b_n[at.table], to.b_k[slot], g.n.count() - shared.work.n0, left_k, to.b[stage]);
  }

  // sum += A B over the kDepth values of k of a stage
  PW_DEVICE void multiply(int stage, Sums& sum) const {
    const TileA& tile_a = shared.stages.a[stage];
    const TileB& tile_b = shared.stages.b[stage];
#pragma unroll(Multiply::kPromotes ? 1 : kDepth / Multiply::kDepth)
    for (int k = 0; k < kDepth; k += Multiply::kDepth) {
      typename Multiply::A a[kBlocksM];
#pragma unroll
      for (int i = 0; i < kBlocksM; ++i) Multiply::load(tile_a, warp_m * Traits::kWarpM + i * 16, k, a[i]);
#pragma unroll
      for (int j = 0; j < kBlocksN; j += 2) {
        typename Multiply::B b[2];
        Multiply::load(tile_b, warp_n * Traits::kWarpN + j * 8, k, b);
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

  // The sum over this split's share of k.
  PW_DEVICE void accumulate(Sums& sum) {
    const int64_t first = shared.work.split * launch.plan.steps_per_split;
    const int64_t rest = launch.plan.steps - first, share = launch.plan.steps_per_split;
    At load_at(g, first, rest < share ? rest : share);  // the step whose offsets are in the tables
    if (load_at.left <= 0) return;
    const int64_t steps = load_at.left;
    int slot = 0;
    // Ends with the tables of the step after it being filled, for all to see after the next barrier.
    const auto load_next = [&](int stage) {
      if (load_at.left > 0) {
        start_copies(load_at, slot, stage);
        slot ^= 1;
        if (load_at.advance(g)) fill_segment(load_at);
        if (load_at.left > 0) fill_step(load_at, slot);
      }
      copy_async_commit();
    };
    fill_segment(load_at);
    fill_step(load_at, 0);
    Sums part = {};
    int stage = 0, next = 0;
#pragma unroll 1
    for (int64_t step = 1 - kStages; step < steps; ++step) {  // the first ones only copy
      copy_async_wait<kStages - 2>();
      sync_threads();  // the stage is complete, the one before has been read, and the tables are filled
      load_next(next);
      next = next + 1 == kStages ? 0 : next + 1;
      if (step < 0) continue;
      if constexpr (Multiply::kPromotes) {
        multiply(stage, part);
        if (step % kPromoteSteps == kPromoteSteps - 1 || step + 1 == steps) move(part, sum);
      } else {
        multiply(stage, sum);
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    sync_threads();  // the stages' memory becomes the output's
  }

  // Writes the tile part by part through shared memory, for each thread to write `RUN` neighbours.
  template <int RUN>
  PW_DEVICE void write_part(int part, const Operands<T>& to, float* partials) {
    constexpr int kRuns = kTileN / RUN;
    Output& out = shared.output;
    const int64_t m_count = g.m.count(), n_count = g.n.count();
#pragma unroll 1
    for (int e = thread_index(); e < kPartRows * kRuns; e += kThreads) {
      const int row = e / kRuns, x = e % kRuns * RUN;
      const int y = row / 16 * Traits::kWarpM + part * 16 + row % 16;
      const int64_t m = shared.work.m0 + y, n = shared.work.n0 + x;
      if (m >= m_count || n >= n_count) continue;
      const int count = n_count - n < RUN ? int(n_count - n) : RUN;
      float v[RUN];
#pragma unroll
      for (int i = 0; i < RUN; ++i) v[i] = out.sum[row][x + i];
      if (partials) {
#pragma unroll
        for (int i = 0; i < RUN; ++i)
          if (i < count) partials[m * n_count + n + i] = v[i];
        continue;
      }
      if (to.bias) {
#pragma unroll
        for (int i = 0; i < RUN; ++i) v[i] += out.bias[g.bias_on_m ? y : x + i];
      }
      finish_run<T, RUN>(g, to, v, count,
                         {out.c_m[y] + out.c_n[x], to.z ? out.z_m[y] + out.z_n[x] : 0,
                          to.residual ? out.residual_m[y] + out.residual_n[x] : 0});
    }
  }

  PW_DEVICE void write(const Sums& sum) {
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
        launch.plan.splits > 1 ? static_cast<float*>(launch.workspace) + share * m_count * n_count : nullptr;
    const int run = partials ? 1 : launch.plan.access.c / int(sizeof(T));
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
  for (int64_t work = block_index(); work < launch.plan.work(); work += grid_size()) {
    typename Kernel::Sums sum = {};
    select_work(g, launch.plan, work, kernel.shared.work);
    kernel.accumulate(sum);
    kernel.write(sum);
  }
}

}  // namespace pw
