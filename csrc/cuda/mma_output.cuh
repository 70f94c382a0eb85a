// How a tile of gemm_mma ends: its sums pass through shared memory, part by part, for each thread to finish and to
// write as many neighbours as C's alignment allows; or as one share's partial sums.
#pragma once
#include "epilogue.cuh"
#include "mma_traits.cuh"
#include "work.cuh"

namespace pw {

// In shared memory.
template <class Traits>
struct MmaOutput {
  static constexpr int kTileM = Traits::kTileM, kTileN = Traits::kTileN, kThreads = Traits::kThreads;
  static constexpr int kPartRows = Traits::kWarpsM * 16;  // rows of C that are written together
  alignas(16) float sum[kPartRows][kTileN + 8];
  float bias[kTileM > kTileN ? kTileM : kTileN];
  int64_t c_m[kTileM], c_n[kTileN], z_m[kTileM], z_n[kTileN], residual_m[kTileM], residual_n[kTileN];
};

template <class Traits>
struct MmaWriter {
  using T = typename Traits::T;
  using Sums = typename Traits::Sums;
  static constexpr int kThreads = Traits::kThreads, kTileM = Traits::kTileM, kTileN = Traits::kTileN;
  static constexpr int kBlocksM = Traits::kBlocksM, kBlocksN = Traits::kBlocksN;
  static constexpr int kPartRows = MmaOutput<Traits>::kPartRows;
  static constexpr int kRun = 16 / sizeof(T);  // elements of C that a thread writes at once, at most

  const Gemm& g;
  const GemmLaunch& launch;
  const Work& work;
  MmaOutput<Traits>& out;

  // Writes the tile part by part through shared memory, for each thread to write `RUN` neighbours.
  template <int RUN>
  PW_DEVICE void write_part(int part, const Operands<T>& to, float* partials) {
    constexpr int kRuns = kTileN / RUN;
    static_assert(kPartRows * kRuns % kThreads == 0, "all lanes of a warp make words together");
    const int64_t m_count = g.m.count(), n_count = g.n.count(), columns = partial_columns(g);
#pragma unroll 1
    for (int e = thread_index(); e < kPartRows * kRuns; e += kThreads) {
      const int row = e / kRuns, x = e % kRuns * RUN;
      const int y = row / 16 * Traits::kWarpM + part * 16 + row % 16;
      const int64_t m = work.m0 + y, n = work.n0 + x;
      const bool inside = m < m_count && n < n_count;
      uint32_t bits = 0;
      if (inside) {
        const int count = n_count - n < RUN ? int(n_count - n) : RUN;
        Run<float, RUN> run;
        float (&v)[RUN] = run.v;
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
        bits = finish_run<T, RUN>(g, to, run, count,
                                  {out.c_m[y] + out.c_n[x], to.z ? out.z_m[y] + out.z_n[x] : 0,
                                   to.residual ? out.residual_m[y] + out.residual_n[x] : 0});
      }
      if (g.mask.words && !partials) {  // neighbouring lanes have the runs of a word
        bits = join_lanes<32 / RUN>(bits << x % 32);
        if (inside && x % 32 == 0) g.mask.words[m * g.mask.pitch + n / 32] = bits;
      }
    }
  }

  PW_DEVICE void write(const Sums& sum) {
    const Operands<T> to(g, launch.groups, work.group);
    const int64_t m0 = work.m0, n0 = work.n0, m_count = g.m.count(), n_count = g.n.count();
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
    const int64_t share = work.group * launch.plan.splits + work.split;
    float* partials =
        launch.plan.splits > 1 ? static_cast<float*>(launch.workspace) + share * m_count * partial_columns(g) : nullptr;
    const int run = partials ? 1 : launch.plan.access.c / int(sizeof(T));
    const int lane = thread_index() % 32;
    const int warp_m = thread_index() / 32 % Traits::kWarpsM, warp_n = thread_index() / 32 / Traits::kWarpsM;
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
      else if (run == 4 && kRun > 4)
        write_part<4>(part, to, partials);
      else
        write_part<1>(part, to, partials);
      sync_threads();  // the part has been read
    }
  }
};

}  // namespace pw
