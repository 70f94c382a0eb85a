// C = activation(A B + bias + residual) by fused multiply-adds: the kernel for float64, and the one that
// gemm_mma is checked against.
//
// A block computes TILE x TILE elements of C in steps of kTileK along k, in two stages of shared memory: while one is
// multiplied the next is loaded, and the offsets for the one after that are worked out. A thread holds
// kPerThread x kPerThread sums in registers.
#pragma once
#include "epilogue.cuh"
#include "intrin.cuh"
#include "offsets.cuh"
#include "position.cuh"
#include "work.cuh"

namespace pw {

constexpr int kGemmThreads = 256, kGemmSide = 16;  // a square of threads

template <class A, int N>
struct alignas(sizeof(A) * N) Vector {
  A v[N];
};

template <class T, int TILE>
struct GemmFma {
  using Acc = acc_t<T>;
  static constexpr int kVector = 16 / sizeof(Acc);  // elements of one 16-byte access to shared memory
  static constexpr int kPerThread = TILE / kGemmSide;
  static constexpr int kParts = kPerThread / kVector;  // a thread's rows, in runs of kVector
  static constexpr int kPart = TILE / kParts;          // rows of C that one run of all threads covers
  static constexpr int kPitch = TILE + kVector;        // keeps rows aligned and off each other's banks
  static constexpr bool kAsync = sizeof(T) == sizeof(Acc);
  static constexpr int kUnroll = 4;  // more loads at once take registers that the sums need

  // Row or column of the tile that a thread's i-th row or column of sums is.
  PW_DEVICE static int spread(int thread, int i) { return i / kVector * kPart + thread * kVector + i % kVector; }

  struct Stages {
    alignas(16) Acc a[2][kTileK][kPitch], b[2][kTileK][kPitch];
    int64_t a_k[2][kTileK], b_k[2][kTileK];  // offsets, by step
    int64_t a_m[2][TILE], b_n[2][TILE];      // and by segment
  };
  struct Output {
    Acc sum[kPart][TILE + 1];
    int64_t c_m[TILE], c_n[TILE], z_m[TILE], z_n[TILE], residual_m[TILE], residual_n[TILE];
  };
  struct Shared {
    Work work;  // here because the sums need the registers
    union {
      Stages stages;
      Output output;
    };
  };

  const Gemm& g;
  const GemmLaunch& launch;
  Shared& shared;
  const int tx = thread_index() % kGemmSide, ty = thread_index() / kGemmSide;

  PW_DEVICE void fill_step(const Position<kTileK>& at, int stage) {
    const Segment& s = g.segment[at.segment];
    Stages& to = shared.stages;
    const int operand = thread_index() / kTileK;
    if (operand < 2)
      fill_offsets<kTileK, kTileK>(operand == 0 ? to.a_k[stage] : to.b_k[stage], s.k, operand == 0 ? s.a.col : s.b.row,
                                   at.k);
  }

  PW_DEVICE void fill_segment(const Position<kTileK>& at) {
    const Segment& s = g.segment[at.segment];
    fill_offsets<TILE, kGemmThreads>(shared.stages.a_m[at.table], g.m, s.a.row, shared.work.m0);
    fill_offsets<TILE, kGemmThreads>(shared.stages.b_n[at.table], g.n, s.b.col, shared.work.n0);
  }

  // Copies a thread's share of one operand's next step to shared memory; 16-bit types are widened on the way.
  PW_DEVICE void load(const T* data, bool along_k, const int64_t (&side)[TILE], const int64_t (&depth)[kTileK],
                      Acc (&to)[kTileK][kPitch]) {
#pragma unroll kUnroll
    for (int i = 0; i < TILE * kTileK / kGemmThreads; ++i) {
      int x, k;
      place<TILE, kTileK>(along_k, thread_index() + i * kGemmThreads, x, k);
      const bool inside = side[x] != kOutside && depth[k] != kOutside;
      const T* from = inside ? data + (side[x] + depth[k]) : data;
      if constexpr (kAsync)
        copy_async<sizeof(T)>(&to[k][x], from, inside ? sizeof(T) : 0);
      else
        to[k][x] = inside ? widen(*from) : Acc(0);
    }
  }

  // sum += A B over the kTileK channels of a stage
  PW_DEVICE void multiply(int stage, Acc (&sum)[kPerThread][kPerThread]) const {
    using V = Vector<Acc, kVector>;
#pragma unroll
    for (int k = 0; k < kTileK; ++k) {
      V a[kParts], b[kParts];
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        a[p] = *reinterpret_cast<const V*>(&shared.stages.a[stage][k][spread(ty, p * kVector)]);
        b[p] = *reinterpret_cast<const V*>(&shared.stages.b[stage][k][spread(tx, p * kVector)]);
      }
#pragma unroll
      for (int i = 0; i < kPerThread; ++i)
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) sum[i][j] += a[i / kVector].v[i % kVector] * b[j / kVector].v[j % kVector];
    }
  }

  // The sum over this split's share of k.
  PW_DEVICE void accumulate(Acc (&sum)[kPerThread][kPerThread]) {
    const int64_t first = shared.work.split * launch.plan.steps_per_split;
    const int64_t rest = launch.plan.steps - first, share = launch.plan.steps_per_split;
    Position<kTileK> load_at(g, first, rest < share ? rest : share);  // the step whose offsets are in the tables
    if (load_at.left <= 0) return;

    const auto start_load = [&](int stage) {
      const Segment& s = g.segment[load_at.segment];
      Stages& to = shared.stages;
      load(Operands<T>::moved(s.a.data, launch.groups.a[load_at.segment], shared.work.group), contiguous(s.a.col),
           to.a_m[load_at.table], to.a_k[stage], to.a[stage]);
      load(Operands<T>::moved(s.b.data, launch.groups.b[load_at.segment], shared.work.group), contiguous(s.b.row),
           to.b_n[load_at.table], to.b_k[stage], to.b[stage]);
      copy_async_commit();
    };
    const auto fill_next = [&](int stage) {
      if (load_at.advance(g)) fill_segment(load_at);
      if (load_at.left > 0) fill_step(load_at, stage);
    };

    fill_segment(load_at);
    fill_step(load_at, 0);
    sync_threads();
    start_load(0);
    fill_next(1);
    for (int stage = 0;; stage ^= 1) {
      copy_async_wait<0>();
      sync_threads();  // the stage is complete, the other one has been read, and the tables are filled
      const bool more = load_at.left > 0;
      if (more) {
        start_load(stage ^ 1);
        fill_next(stage);
      }
      multiply(stage, sum);
      if (!more) break;
    }
    sync_threads();  // the stages' memory becomes the output's
  }

  // Writes the tile part by part through shared memory, for consecutive threads to write neighbours in memory.
  PW_DEVICE void write(const Acc (&sum)[kPerThread][kPerThread]) {
    Output& out = shared.output;
    const Operands<T> to(g, launch.groups, shared.work.group);
    const bool partial = launch.plan.splits > 1;
    fill_offsets<TILE, kGemmThreads>(out.c_m, g.m, g.c.row, shared.work.m0);
    fill_offsets<TILE, kGemmThreads>(out.c_n, g.n, g.c.col, shared.work.n0);
    if (to.z) {
      fill_offsets<TILE, kGemmThreads>(out.z_m, g.m, g.z.row, shared.work.m0);
      fill_offsets<TILE, kGemmThreads>(out.z_n, g.n, g.z.col, shared.work.n0);
    }
    if (to.residual) {
      fill_offsets<TILE, kGemmThreads>(out.residual_m, g.m, g.residual.row, shared.work.m0);
      fill_offsets<TILE, kGemmThreads>(out.residual_n, g.n, g.residual.col, shared.work.n0);
    }
    const int64_t m_count = g.m.count(), n_count = g.n.count(), columns = partial_columns(g);
    const int64_t share = shared.work.group * launch.plan.splits + shared.work.split;
    Acc* partials = partial ? static_cast<Acc*>(launch.workspace) + share * m_count * columns : nullptr;
    const bool along_n = partial || contiguous(g.c.col) || !contiguous(g.c.row);
#pragma unroll 1
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i)  // registers have no index at run time, hence a comparison
        if (i / kVector == part)
#pragma unroll
          for (int j = 0; j < kPerThread; ++j) out.sum[ty * kVector + i % kVector][spread(tx, j)] = sum[i][j];
      sync_threads();
#pragma unroll 1
      for (int e = thread_index(); e < kPart * TILE; e += kGemmThreads) {
        int row, x;
        place<kPart, TILE>(along_n, e, row, x);
        const int y = part * kPart + row;
        const int64_t m = shared.work.m0 + y, n = shared.work.n0 + x;
        if (m >= m_count || n >= n_count) continue;
        if (partials)
          partials[m * columns + n] = out.sum[row][x];
        else
          finish(g, to, out.sum[row][x], g.bias_on_m ? m : n,
                 {out.c_m[y] + out.c_n[x], to.z ? out.z_m[y] + out.z_n[x] : 0,
                  to.residual ? out.residual_m[y] + out.residual_n[x] : 0});
      }
      sync_threads();  // the part has been read
    }
  }
};

template <class T, int TILE>
PW_KERNEL(kGemmThreads, 2)
gemm_fma(PW_PARAMETER Gemm g, PW_PARAMETER GemmLaunch launch) {
  using Kernel = GemmFma<T, TILE>;
  Kernel kernel{g, launch, shared_memory<typename Kernel::Shared>()};
  for (int64_t work = block_index(); work < launch.plan.work(); work += grid_size()) {
    typename Kernel::Acc sum[Kernel::kPerThread][Kernel::kPerThread] = {};
    select_work(g, launch.plan, work, kernel.shared.work);
    kernel.accumulate(sum);
    kernel.write(sum);
  }
}

}  // namespace pw
