// How a tile of gemm_lean ends: each warp's sums pass through shared memory of its own, 16 rows after another, for its
// lanes to finish and to write 16 bytes at a time; or, as one share's, to the workspace.
#pragma once
#include "epilogue.cuh"
#include "lean_stream.cuh"

namespace pw {

template <class Traits>
PW_CALLED void finish_rows(const Gemm& g, const GemmLaunch& launch, LeanWork w, int row, int bias_table);

template <class Traits>
struct LeanWriter {
  using T = typename Traits::T;
  using Sums = typename Traits::Sums;
  static constexpr int kThreads = Traits::kThreads, kTileM = Traits::kTileM, kTileN = Traits::kTileN;
  static constexpr int kRun = 16 / sizeof(T);  // elements of C that a lane writes at once
  static_assert(Traits::kWarpN == 32, "a warp's columns are those of a word of a mask");

  const Gemm& g;
  const GemmLaunch& launch;
  LeanOutput<Traits>& out;
  uint32_t bias_from = ~0u;  // what the table of biases begins with
  int bias_table = 0;

  PW_DEVICE static int row_of_warp() { return thread_index() / 32 % Traits::kWarpsM * Traits::kWarpM; }
  PW_DEVICE static int column_of_warp() { return thread_index() / 32 / Traits::kWarpsM * Traits::kWarpN; }

  // Fills the table of biases if this tile has others than the one before: for all to see after the next barrier.
  PW_DEVICE void prepare(const LeanWork& w) {
    if (!g.bias || launch.plan.splits > 1) return;
    const uint32_t count = lean_count(g.bias_on_m ? g.m : g.n), first = g.bias_on_m ? w.m0 : w.n0;
    if (first == bias_from) return;
    bias_from = first, bias_table ^= 1;
#pragma unroll 1
    for (int i = thread_index(); i < (g.bias_on_m ? kTileM : kTileN); i += kThreads)
      out.bias[bias_table][i] =
          first + i < count ? widen(static_cast<const T*>(g.bias)[(first + i) * g.bias_step]) : 0.0f;
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

  PW_DEVICE void write_row_sums(const LeanWork& w, float rows, float* partials) {
    const int i = thread_index();
    const uint32_t m = w.m0 + i;
    out.row_sum[i / kTileM][i % kTileM] = rows;
    sync_threads();  // all parts of a row are there
    if (i >= kTileM || m >= lean_count(g.m)) return;
    float sum = 0;
    for (int part = 0; part < kThreads / kTileM; ++part) sum += out.row_sum[part][i];
    if (partials)
      partials[int64_t(m) * partial_columns(g) + g.n.count()] = sum;
    else
      static_cast<T*>(g.row_sums)[m] = narrow<T>(sum);
  }

  // Whether nothing but a bias and a ReLU is left to do: then `write` has it inline, and nothing that it does not need.
  PW_DEVICE bool is_simple() const {
    return !g.residual.data && !g.mask.words && (g.activation.kind == Act::none || g.activation.kind == Act::relu);
  }

  // A warp's rows, 16 after another.
  PW_DEVICE void write(const LeanWork& w, const Sums& sum) const {
    constexpr int kRuns = Traits::kWarpN / kRun, kRows = 32 / kRuns;
    const int lane = thread_index() % 32, x = lane % kRuns * kRun;
    const int column = column_of_warp() + x, row = row_of_warp();
    float (&slab)[16][LeanOutput<Traits>::kPitch] = out.sum[thread_index() / 32];
    const uint32_t n = w.n0 + column;
    const bool there = n < lean_count(g.n), simple = is_simple();
    T* const c = static_cast<T*>(g.c.data) + (there ? lean_offset(launch.plan.flat_n, g.n, g.c.col, n) : 0);
    const float least = g.activation.kind == Act::relu ? 0.0f : -INFINITY;
#pragma unroll
    for (int part = 0; part < Traits::kBlocksM; ++part) {
#pragma unroll
      for (int j = 0; j < Traits::kBlocksN; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          Run<float, 2>{{sum[part][j][half * 2], sum[part][j][half * 2 + 1]}}.store(
              &slab[lane / 4 + half * 8][j * 8 + lane % 4 * 2], 2);
      sync_warp();  // the rows are there
      if (!simple) {
        finish_rows<Traits>(g, launch, w, row + part * 16, bias_table);
      } else {
#pragma unroll
        for (int turn = 0; turn < 16; turn += kRows) {
          const int y = turn + lane / kRuns;
          const uint32_t m = w.m0 + row + part * 16 + y;
          if (!there || m >= lean_count(g.m)) continue;
          Run<float, kRun> v;
          v.load(&slab[y][x], kRun);
          add_bias(v, row + part * 16 + y, column);
#pragma unroll
          for (int i = 0; i < kRun; ++i) v.v[i] = select(v.v[i] < least, 0.0f, v.v[i]);
          Run<T, kRun> run;
          narrow_run(v, run);
          run.store(c + lean_offset(launch.plan.flat_m, g.m, g.c.row, m), kRun);
        }
      }
      sync_warp();  // the rows have been read
    }
  }

  // Pairs of neighbours, as lanes hold them: four lanes have 32 bytes that lie together.
  PW_DEVICE void write_partials(const LeanWork& w, const Sums& sum, float* partials) const {
    const int lane = thread_index() % 32;
    const uint32_t columns = uint32_t(partial_columns(g)), n = w.n0 + column_of_warp() + lane % 4 * 2;
    const uint32_t first = w.m0 + row_of_warp() + lane / 4;
    const int rows = int(lean_count(g.m)) - int(first), left = int(lean_count(g.n)) - int(n);  // even: pairs are whole
    float* const to = partials + int64_t(first) * columns + n;
#pragma unroll
    for (int i = 0; i < Traits::kBlocksM * 2; ++i)
      if (i * 8 < rows)
#pragma unroll
        for (int j = 0; j < Traits::kBlocksN; ++j)
          if (j * 8 < left)
            Run<float, 2>{{sum[i / 2][j][i % 2 * 2], sum[i / 2][j][i % 2 * 2 + 1]}}.store(to + i * 8 * columns + j * 8,
                                                                                          2);
  }
};

// Finishes a warp's 16 rows with everything a product may end with, `row` the first one in the tile. A function that is
// called: its instructions would keep the others from the cache.
template <class Traits>
PW_CALLED void finish_rows(const Gemm& g, const GemmLaunch& launch, LeanWork w, int row, int bias_table) {
  using T = typename Traits::T;
  using Writer = LeanWriter<Traits>;
  constexpr int kRun = Writer::kRun, kRuns = Traits::kWarpN / kRun, kRows = 32 / kRuns;
  const Writer writer{g, launch, LeanShared<Traits>::plain().output, 0, bias_table};
  const int lane = thread_index() % 32, x = lane % kRuns * kRun, column = Writer::column_of_warp() + x;
  const uint32_t n = w.n0 + column;
  const bool there = n < lean_count(g.n), flat_m = launch.plan.flat_m, flat_n = launch.plan.flat_n;
  T* const c = static_cast<T*>(g.c.data) + (there ? lean_offset(flat_n, g.n, g.c.col, n) : 0);
  const T* const residual = static_cast<const T*>(g.residual.data) +
                            (there && g.residual.data ? lean_offset(flat_n, g.n, g.residual.col, n) : 0);
#pragma unroll 1
  for (int turn = 0; turn < 16; turn += kRows) {
    const int y = turn + lane / kRuns;
    const uint32_t m = w.m0 + row + y;
    const bool inside = there && m < lean_count(g.m);
    uint32_t bits = 0;
    if (inside) {
      Run<float, kRun> v;
      Run<T, kRun> run;
      v.load(&writer.out.sum[thread_index() / 32][y][x], kRun);
      writer.add_bias(v, row + y, column);
      if (g.residual.data) {
        run.load(residual + lean_offset(flat_m, g.m, g.residual.row, m), kRun);
#pragma unroll
        for (int i = 0; i < kRun; ++i) v.v[i] += widen(run.v[i]);
      }
      activate_all(g.activation, v);
      narrow_run(v, run);
      run.store(c + lean_offset(flat_m, g.m, g.c.row, m), kRun);
      if (g.mask.words)
#pragma unroll
        for (int i = 0; i < kRun; ++i) bits |= uint32_t(passes(g.activation, widen(run.v[i]))) << i;
    }
    if (g.mask.words) {
      bits = join_lanes<kRuns>(bits << x);
      if (inside && x == 0) g.mask.words[m * g.mask.pitch + n / 32] = bits;
    }
  }
}

}  // namespace pw
