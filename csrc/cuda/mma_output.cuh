// How a tile of gemm_mma ends: each warp's sums pass through shared memory of its own, 16 rows after another, for its
// lanes to finish and to write as many neighbours as C's alignment allows; or, as one share's, to the workspace.
#pragma once
#include "copies.cuh"
#include "epilogue.cuh"
#include "mma_traits.cuh"
#include "work.cuh"

namespace pw {

// In shared memory.
template <class Traits>
struct MmaOutput {
  static constexpr int kTileM = Traits::kTileM, kTileN = Traits::kTileN, kThreads = Traits::kThreads;
  static constexpr int kPitch = Traits::kWarpN + 8;  // floats: rows of four lanes each are stored without conflicts
  alignas(16) float sum[kThreads / 32][16][kPitch];
  alignas(16) float bias[2][kTileM > kTileN ? kTileM : kTileN];  // of this tile and, from elsewhere, the next
  float row_sum[kThreads / kTileM][kTileM];
};

template <class Traits>
PW_DEVICE MmaOutput<Traits>& output();  // of the block

// The blocks of the first column of tiles add up A's rows.
PW_DEVICE bool adds_rows(const Gemm& g, const Work& work) { return g.row_sums && work.n0 == 0; }

template <class Traits>
PW_CALLED void write_narrow(const Gemm& g, const GemmLaunch& launch, Work work, int row, int bias_table);

template <class Traits>
struct MmaWriter {
  using T = typename Traits::T;
  using Sums = typename Traits::Sums;
  using Output = MmaOutput<Traits>;
  static constexpr int kThreads = Traits::kThreads, kTileM = Traits::kTileM, kTileN = Traits::kTileN;
  static constexpr int kBlocksM = Traits::kBlocksM, kBlocksN = Traits::kBlocksN, kWarpN = Traits::kWarpN;
  static constexpr int kRun = 16 / sizeof(T);  // elements of C that a lane writes at once, at most
  static_assert(kWarpN == 32, "a warp's columns are those of a word of a mask");

  const Gemm& g;
  const GemmLaunch& launch;
  Output& out;
  int bias_from = -1;  // what the table of biases begins with
  int bias_table = 0;

  PW_DEVICE static int lane() { return thread_index() % 32; }
  PW_DEVICE static int warp() { return thread_index() / 32; }
  PW_DEVICE static int row_of_warp() { return warp() % Traits::kWarpsM * Traits::kWarpM; }
  PW_DEVICE static int column_of_warp() { return warp() / Traits::kWarpsM * kWarpN; }

  // Fills the table of biases if this tile has others than the one before: for all to see after the next barrier.
  PW_DEVICE void prepare(const Work& work) {
    if (!g.bias || launch.plan.splits > 1) return;
    const int64_t count = g.bias_on_m ? g.m.count() : g.n.count(), first = g.bias_on_m ? work.m0 : work.n0;
    const int from = int(work.group * count + first);  // of channels, which 32 bits count
    if (from == bias_from) return;
    bias_from = from, bias_table ^= 1;
    const T* bias = Operands<T>(g, launch.groups, work.group).bias;
#pragma unroll 1
    for (int i = thread_index(); i < (g.bias_on_m ? kTileM : kTileN); i += kThreads)
      out.bias[bias_table][i] = first + i < count ? widen(bias[(first + i) * g.bias_step]) : 0.0f;
  }

  // Adds the biases of neighbouring columns, or of their row.
  template <int RUN>
  PW_DEVICE void add_bias(Run<float, RUN>& v, int row, int column) const {
    if (!g.bias) return;
    if (g.bias_on_m) {
      const float bias = out.bias[bias_table][row];
#pragma unroll
      for (int i = 0; i < RUN; ++i) v.v[i] += bias;
      return;
    }
    Run<float, RUN> bias;
    bias.load(&out.bias[bias_table][column], RUN);
#pragma unroll
    for (int i = 0; i < RUN; ++i) v.v[i] += bias.v[i];
  }

  PW_DEVICE void write_row_sums(const Work& work, float rows, float* partials) {
    const int64_t i = thread_index(), m = work.m0 + i;
    out.row_sum[i / kTileM][i % kTileM] = rows;
    sync_threads();  // all parts of a row are there
    if (i >= kTileM || m >= g.m.count()) return;
    float sum = 0;
    for (int part = 0; part < kThreads / kTileM; ++part) sum += out.row_sum[part][i];
    if (partials)
      partials[m * partial_columns(g) + g.n.count()] = sum;
    else
      Operands<T>::moved(g.row_sums, launch.groups.row_sums, work.group)[m] = narrow<T>(sum);
  }

  // Pairs of neighbours, as lanes hold them: four lanes have 32 bytes that lie together.
  PW_DEVICE void write_partials(const Work& work, const Sums& sum, float* partials) {
    const int64_t columns = partial_columns(g), m_count = g.m.count(), n_count = g.n.count();
    const int64_t n = work.n0 + column_of_warp() + lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < kBlocksM; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t m = work.m0 + row_of_warp() + i * 16 + half * 8 + lane() / 4;
        if (m >= m_count) continue;
        float* const to = partials + m * columns + n;
#pragma unroll
        for (int j = 0; j < kBlocksN; ++j)
          if (n + j * 8 < n_count)
            Run<float, 2>{{sum[i][j][half * 2], sum[i][j][half * 2 + 1]}}.store(to + j * 8,
                                                                               n + j * 8 + 1 < n_count ? 2 : 1);
      }
  }

  PW_DEVICE int64_t offset(bool flat, const Axis& axis, const Steps& steps, int64_t index) const {
    return flat ? index * steps.step[kRank - 1] : offset_called(axis, steps, index);
  }

  // Finishes 16 rows of a warp, `row` the first one in the tile; a lane has RUN neighbours in each of RUN rows' turn.
  template <int RUN>
  PW_DEVICE void write_rows(const Work& work, const Operands<T>& to, int row) const {
    constexpr int kRuns = kWarpN / RUN, kRows = 32 / kRuns;  // of a turn
    const int x = lane() % kRuns * RUN, column = column_of_warp() + x;
    const int64_t n = work.n0 + column, left = g.n.count() - n;
    const int count = left < RUN ? left < 0 ? 0 : int(left) : RUN;
    const bool flat_m = launch.plan.flat_m, flat_n = launch.plan.flat_n;
    OutputPlace of_n{};
    if (count > 0) {
      of_n.c = offset(flat_n, g.n, g.c.col, n);
      if (to.z) of_n.z = offset(flat_n, g.n, g.z.col, n);
      if (to.residual) of_n.residual = offset(flat_n, g.n, g.residual.col, n);
    }
#pragma unroll(RUN >= 4 ? 16 / kRows : 1)
    for (int turn = 0; turn < 16; turn += kRows) {
      const int y = turn + lane() / kRuns;
      const int64_t m = work.m0 + row + y;
      const bool inside = count > 0 && m < g.m.count();
      uint32_t bits = 0;
      if (inside) {
        Run<float, RUN> v;
        v.load(&out.sum[warp()][y][x], RUN);
        add_bias(v, row + y, column);
        bits = finish_run<T, RUN>(g, to, v, count,
                                  {of_n.c + offset(flat_m, g.m, g.c.row, m),
                                   to.z ? of_n.z + offset(flat_m, g.m, g.z.row, m) : 0,
                                   to.residual ? of_n.residual + offset(flat_m, g.m, g.residual.row, m) : 0});
      }
      if (g.mask.words) {  // neighbouring lanes have the runs of a word
        bits = join_lanes<kRuns>(bits << x);
        if (inside && x == 0) g.mask.words[m * g.mask.pitch + n / 32] = bits;
      }
    }
  }

  PW_DEVICE void write(const Work& work, const Sums& sum, float rows) {
    const int64_t share = int64_t(work.group) * launch.plan.splits + work.split;
    float* const partials = launch.plan.splits > 1 ? static_cast<float*>(launch.workspace) +
                                                         share * g.m.count() * partial_columns(g)
                                                   : nullptr;
    if (adds_rows(g, work)) write_row_sums(work, rows, partials);
    if (partials) return write_partials(work, sum, partials);
    const Operands<T> to(g, launch.groups, work.group);
    const int run = launch.plan.access.c / int(sizeof(T));
#pragma unroll 1
    for (int part = 0; part < kBlocksM; ++part) {
#pragma unroll
      for (int i = 0; i < kBlocksM; ++i)  // registers have no index at run time, hence a comparison
        if (i == part)
#pragma unroll
          for (int j = 0; j < kBlocksN; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              Run<float, 2>{{sum[i][j][half * 2], sum[i][j][half * 2 + 1]}}.store(
                  &out.sum[warp()][lane() / 4 + half * 8][j * 8 + lane() % 4 * 2], 2);
      sync_warp();  // the rows are there
      const int row = row_of_warp() + part * 16;
      if (run == kRun)
        write_rows<kRun>(work, to, row);
      else
        write_narrow<Traits>(g, launch, work, row, bias_table);
      sync_warp();  // the rows have been read
    }
  }
};

// Runs of fewer than 16 bytes, as a function that is called: its code would be three times as long as all else.
template <class Traits>
PW_CALLED void write_narrow(const Gemm& g, const GemmLaunch& launch, Work work, int row, int bias_table) {
  using Writer = MmaWriter<Traits>;
  using T = typename Traits::T;
  const Writer writer{g, launch, output<Traits>(), 0, bias_table};
  const Operands<T> to(g, launch.groups, work.group);
  const int run = launch.plan.access.c / int(sizeof(T));
  if (run == Writer::kRun / 2)
    writer.template write_rows<Writer::kRun / 2>(work, to, row);
  else if (run == Writer::kRun / 4 && Writer::kRun > 4)
    writer.template write_rows<Writer::kRun / 4>(work, to, row);
  else
    writer.template write_rows<1>(work, to, row);
}

}  // namespace pw
