// How a tile of gemm_lean begins, with its biases, and ends: each warp's sums pass through shared memory of its own, 16
// rows after another, for its lanes to write 16 bytes at a time; or, as one share's, to the workspace.
#pragma once
#include "epilogue.cuh"
#include "lean_stream.cuh"

namespace pw {

template <class T>
PW_CALLED void finish_rows(const LeanLaunch& l, int group, uint32_t m, uint32_t n, uint32_t slabs);

template <class Traits>
struct LeanWriter {
  using T = typename Traits::T;
  using Sums = typename Traits::Sums;
  static constexpr int kThreads = Traits::kThreads, kTileM = Traits::kTileM;
  static constexpr int kBlocksM = Traits::kBlocksM, kBlocksN = Traits::kBlocksN;
  static constexpr int kRun = 16 / sizeof(T);  // elements of C that a lane writes at once
  static constexpr bool kBiasOnM = Traits::kBiasOnM;
  static constexpr uint32_t kLowest = std::is_same<T, bf16>::value ? 0xff80ff80 : 0xfc00fc00;  // -Inf, twice

  const LeanLaunch& l;
  LeanOutput<Traits>& out;

  PW_DEVICE static int lane() { return thread_index() % 32; }
  PW_DEVICE static int row_of_warp() { return thread_index() / 32 % Traits::kWarpsM * Traits::kWarpM; }
  PW_DEVICE static int column_of_warp() { return thread_index() / 32 / Traits::kWarpsM * Traits::kWarpN; }

  // A tile's sums begin with their biases, or with 0.
  PW_DEVICE void start(const LeanWork& w, Sums& sum) const {
    const uint32_t count = !l.bias ? 0 : kBiasOnM ? l.m.count : l.n.count;
    const uint32_t first = kBiasOnM ? w.m0 + row_of_warp() + lane() / 4 : w.n0 + column_of_warp() + lane() % 4 * 2;
    const T* const from = of_group<T>(const_cast<void*>(l.bias), l.groups.bias, w.group) + first;
#pragma unroll
    for (int i = 0; i < (kBiasOnM ? kBlocksM : kBlocksN); ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int x = kBiasOnM ? i * 16 + e * 8 : i * 8 + e;
        const float bias = first + x < count ? widen(from[x]) : 0.0f;
#pragma unroll
        for (int j = 0; j < (kBiasOnM ? kBlocksN : kBlocksM); ++j)
#pragma unroll
          for (int other = 0; other < 2; ++other)
            (kBiasOnM ? sum[i][j][e * 2 + other] : sum[j][i][other * 2 + e]) = bias;
      }
  }

  PW_DEVICE void finish(const LeanWork& w, const Sums& sum, float rows) const {
    if (l.adds_rows(w)) write_row_sums(w, rows);
    if (l.partials) return write_partials(w, sum);
    const uint32_t m = w.m0 + row_of_warp(), n = w.n0 + column_of_warp();
    if constexpr (sizeof(T) == 2)
      if (Traits::kSimple || l.simple) return write_simple(w.group, m, n, sum);
    if constexpr (!Traits::kSimple)
#pragma unroll
      for (int i = 0; i < kBlocksM; ++i) write_part(w.group, m + i * 16, n, sum[i]);
  }

  PW_DEVICE void write_row_sums(const LeanWork& w, float rows) const {
    const int i = thread_index();
    const uint32_t m = w.m0 + i;
    out.row_sum[i / kTileM][i % kTileM] = rows;
    sync_threads();  // all parts of a row are there
    if (i >= kTileM || m >= l.m.count) return;
    float sum = 0;
    for (int part = 0; part < kThreads / kTileM; ++part) sum += out.row_sum[part][i];
    if (l.partials)
      partials(w, m)[l.n.count] = sum;
    else
      of_group<T>(l.row_sums, l.groups.row_sums, w.group)[m] = narrow<T>(sum);
  }

  PW_DEVICE float* partials(const LeanWork& w, uint32_t m) const {
    const int share = w.group * int(l.shares.divisor) + w.split;
    return l.partials + (share * int64_t(l.m.count) + m) * l.columns;
  }

  // Pairs of neighbours, as lanes hold them: four lanes have 32 bytes that lie together.
  PW_DEVICE void write_partials(const LeanWork& w, const Sums& sum) const {
    const uint32_t n = w.n0 + column_of_warp() + lane() % 4 * 2, first = w.m0 + row_of_warp() + lane() / 4;
    const int rows = int(l.m.count) - int(first), left = int(l.n.count) - int(n);
    float* const to = partials(w, first) + n;
#pragma unroll
    for (int i = 0; i < kBlocksM * 2; ++i)
      if (i * 8 < rows)
#pragma unroll
        for (int j = 0; j < kBlocksN; ++j)
          if (j * 8 < left)
            Run<float, 2>{{sum[i / 2][j][i % 2 * 2], sum[i / 2][j][i % 2 * 2 + 1]}}.store(
                to + i * 8 * l.columns + j * 8, left - j * 8 < 2 ? 1 : 2);
  }

  // A warp's tile of C from (m, n) on: 16 rows after another turn from fragments, which take the residual, the curve if
  // there is one, are rounded and go through ReLU first, to rows of 64 bytes. Two such parts take turns in shared
  // memory.
  PW_DEVICE void write_simple(int group, uint32_t m, uint32_t n, const Sums& sum) const {
    char* const slab = reinterpret_cast<char*>(out.sum[thread_index() / 32]);
    const bool curved = l.activation.kind != Act::relu && l.activation.kind != Act::none;
    const uint32_t least = l.activation.kind == Act::relu ? 0 : kLowest, x = n + lane() % 4 * kRun;
    const int rows = x < l.n.count ? int(l.m.count) - int(m) - lane() / 4 : 0;
    uint32_t* const words = l.mask ? l.mask + (int64_t(m + lane() / 4) * l.mask_pitch + n / 32) : nullptr;
    const auto at = [&](const LeanMatrix& to, int64_t step) {
      return of_group<T>(to.data, step, group) + ((m + lane() / 4) * to.row.inner + l.n.offset(to.col, x));
    };
    T* const c = at(l.c, l.groups.c);
    const T* const residual = l.residual.data ? at(l.residual, l.groups.residual) : nullptr;
#pragma unroll
    for (int i = 0; i < kBlocksM; ++i) {
      char* const part = slab + i % 2 * 1024;
      if (residual) {
#pragma unroll
        for (int turn = 0; turn < 2; ++turn) {
          const int y = i * 16 + turn * 8;
          Run<T, kRun> run{};
          if (y < rows) run.load(residual + y * l.residual.row.inner, kRun);
          run.store(reinterpret_cast<T*>(piece(part, turn * 8 + lane() / 4, lane() % 4)), kRun);
        }
        sync_warp();  // the residual is there
      }
#pragma unroll
      for (int j = 0; j < kBlocksN; j += 2) {
        uint32_t pairs[4] = {};
        if (residual) {
          load_matrices<false>(pairs, piece(part, lane() % 16, j + lane() / 16));
          sync_warp();  // the residual has been read, where lanes write other rows than they read
        }
#pragma unroll
        for (int block = 0; block < 2; ++block) {
          Run<float, 4> v;
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            v.v[e] = sum[i][j + block][e];
            if (residual) v.v[e] += widen(T{uint16_t(pairs[block * 2 + e / 2] >> e % 2 * 16)});
          }
          if (curved) v = activate_run(l.activation, v);
#pragma unroll
          for (int p = 0; p < 2; ++p)
            pairs[block * 2 + p] = max_pair<T>(narrow_pair<T>(v.v[p * 2], v.v[p * 2 + 1]), least);
        }
        store_matrices([&](int matrix, int row) { return piece(part, matrix % 2 * 8 + row, j + matrix / 2); }, pairs);
      }
      sync_warp();  // the rows are there
#pragma unroll
      for (int turn = 0; turn < 2; ++turn) {
        Run<T, kRun> run;
        run.load(reinterpret_cast<const T*>(piece(part, turn * 8 + lane() / 4, lane() % 4)), kRun);
        const int y = i * 16 + turn * 8;
        if (y < rows) run.store(c + y * l.c.row.inner, kRun);
        if (words) {
          const uint32_t bits = join_lanes<4>(x < l.n.count ? positive_bits(run) << lane() % 4 * kRun : 0);
          if (y < rows && lane() % 4 == 0) words[y * l.mask_pitch] = bits;
        }
      }
    }
  }

  // Where 16 bytes of a row of 64 lie: their order differs from row to row, so that neither the eight rows that are
  // stored at once nor the two that are read meet in a bank.
  PW_DEVICE static char* piece(char* part, int row, int i) { return part + row * 64 + (i ^ (row / 2 % 4)) * 16; }

  // The bits of a mask for what ReLU has left: which of eight are not 0. None has a sign, so that nothing is carried.
  PW_DEVICE static uint32_t positive_bits(const Run<T, kRun>& run) {
    uint32_t pairs[4], bits = 0;
    memcpy(pairs, run.v, sizeof(pairs));
#pragma unroll
    for (int i = 0; i < 4; ++i) bits |= ((pairs[i] + 0x7fff7fff) & 0x80008000) >> (15 - 2 * i);
    return (bits | bits >> 15) & 0xff;
  }

  // 16 rows with everything that a product may end with.
  PW_DEVICE void write_part(int group, uint32_t m, uint32_t n, const float (&sum)[kBlocksN][4]) const {
    LeanSlab& slab = out.sum[thread_index() / 32];
#pragma unroll
    for (int j = 0; j < kBlocksN; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        Run<float, 2>{{sum[j][half * 2], sum[j][half * 2 + 1]}}.store(
            &slab[lane() / 4 + half * 8][j * 8 + lane() % 4 * 2], 2);
    sync_warp();  // the part's rows are there
    finish_rows<T>(l, group, m, n, offsetof(typename LeanShared<Traits>::Plain, output.sum));
    sync_warp();  // the part's rows have been read
  }
};

// Brings a warp's rows of the residual from (m, n) on, which write_simple() will read, nearer while the tile is
// multiplied. A function that is called: its addresses would take registers that the sums need.
template <class T>
PW_CALLED void prefetch_residual(const LeanLaunch& l, int group, uint32_t m, uint32_t n, int rows) {
  m += thread_index() % 32;
  const T* const residual = of_group<T>(l.residual.data, l.groups.residual, group);
#pragma unroll 1
  for (int y = 0; y < rows; y += 32)
    if (m + y < l.m.count && n < l.n.count)
      prefetch_global(residual + ((m + y) * l.residual.row.inner + l.n.offset(l.residual.col, n)));
}

// Finishes a warp's 16 rows of C from (m, n) on, whose sums are in `slab`, RUN elements at a time.
template <class T, int RUN>
PW_DEVICE void finish_runs(const LeanLaunch& l, int group, uint32_t m, uint32_t n, const LeanSlab& slab) {
  constexpr int kRuns = kWarpColumns / RUN, kRows = 32 / kRuns;
  const int lane = thread_index() % 32, x = lane % kRuns * RUN;
  const bool there = n + x < l.n.count;
  const auto column_of = [&](const LeanMatrix& to, int64_t step) {
    return of_group<T>(to.data, step, group) + l.n.offset(to.col, n + x);
  };
  T *const c = column_of(l.c, l.groups.c), *const z = column_of(l.z, l.groups.z);
  const T* const residual = column_of(l.residual, l.groups.residual);
#pragma unroll 1
  for (int y = lane / kRuns; y < 16; y += kRows) {
    const bool inside = there && m + y < l.m.count;
    uint32_t bits = 0;
    if (inside) {
      Run<float, RUN> v;
      Run<T, RUN> run;
      v.load(&slab[y][x], RUN);
      if (l.residual.data) {
        run.load(residual + l.m.offset(l.residual.row, m + y), RUN);
#pragma unroll
        for (int i = 0; i < RUN; ++i) v.v[i] += widen(run.v[i]);
      }
      if (l.z.data) {
        narrow_run(v, run);
        run.store(z + l.m.offset(l.z.row, m + y), RUN);
      }
      activate_all(l.activation, v);
      narrow_run(v, run);
      run.store(c + l.m.offset(l.c.row, m + y), RUN);
      if (l.mask)
#pragma unroll
        for (int i = 0; i < RUN; ++i) bits |= uint32_t(passes(l.activation, widen(run.v[i]))) << i;
    }
    if (l.mask) {
      bits = join_lanes<kRuns>(bits << x);
      if (inside && x == 0) l.mask[int64_t(m + y) * l.mask_pitch + n / 32] = bits;
    }
  }
}

// As many at a time as C's alignment allows; `slabs`: where those of all warps are in shared memory. A function that is
// called, one for all tiles: its instructions would keep the others from the cache, and take nvcc twice as long.
template <class T>
PW_CALLED void finish_rows(const LeanLaunch& l, int group, uint32_t m, uint32_t n, uint32_t slabs) {
  constexpr int kElement = sizeof(T);
  const LeanSlab& rows = shared_at<LeanSlab>(slabs)[thread_index() / 32];
  if (l.c_bytes == 16)
    finish_runs<T, 16 / kElement>(l, group, m, n, rows);
  else if (l.c_bytes == 8 && kElement == 2)
    finish_runs<T, 4>(l, group, m, n, rows);
  else
    finish_runs<T, 1>(l, group, m, n, rows);
}

}  // namespace pw
