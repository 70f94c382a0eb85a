// dX = W^T dZ, dW = dZ X^T and db = sum of dZ over pixels, dZ = dY activation'(saved), in one pass over dY, saved (or
// its mask) and X: fp16 and bf16, up to 16384 sums of dW, any strides and alignment.
//
// A block walks over a share of the pixels, kBackwardPixels at a time: while one tile is multiplied, the next is
// copied. W stays in shared memory and the share's dW in registers; dZ takes the place of dY and dX that of X, from
// where it is written as wide as its alignment allows. reduce() adds the shares' dW and db in order.
#pragma once
#include "gate.cuh"
#include "mma.cuh"
#include "operand.cuh"

namespace pw {

constexpr int kBackwardThreads = 256;

// Both products as their descriptions say, with the plan they share.
struct BackwardLaunch {
  Gemm dx, dw;
  BackwardPlan plan;
  float* workspace;  // (splits, out, partial_columns), contiguous
};

// The steps of a matrix's channels as a table of offsets.
struct Channels {
  int64_t count, step;
  PW_DEVICE Channels(const Axis& axis, const Steps& steps) : count(axis.count()), step(steps.step[kRank - 1]) {}
  PW_DEVICE int64_t operator[](int x) const { return x < count ? x * step : kOutside; }
};

// A tile with its sides exchanged.
template <class Tile>
struct Turned {
  static constexpr bool kAlongK = !Tile::kAlongK;
  const Tile& tile;
  PW_DEVICE const typename Tile::Element* at(int x, int k) const { return tile.at(k, x); }
};

// Up to OUT x IN channels, 16384 in all; ALONG_PIXELS: how dY, saved and X lie.
template <class T_, bool ALONG_PIXELS, int OUT, int IN>
struct BackwardMma {
  using T = T_;
  using Multiply = Mma<T, false>;
  static constexpr int kThreads = kBackwardThreads, kPixels = kBackwardPixels, kTables = 3;
  static constexpr int kWarpsM = OUT / 64;                                        // a warp has 64 x 32 sums of dW
  static constexpr int kRowsX = IN / 16, kBlocksX = kRowsX < 8 ? 1 : kRowsX / 8;  // and of dX 16 rows a block
  static constexpr int kSidesX = kRowsX < 8 ? 1 : 2;                              // by 8 pixels a side
  using Outputs = OperandTile<T, OUT, ALONG_PIXELS, kPixels>;
  using Inputs = OperandTile<T, IN, ALONG_PIXELS, kPixels>;
  using Weight = OperandTile<T, IN, false, OUT>;
  using SumsW = float[4][4][4];
  struct Stage {
    Outputs dz, saved;
    Inputs x;
    uint32_t mask[MaskTile<Outputs>::kWords];
  };
  struct Offsets {
    int64_t dy[kPixels], saved[kPixels], x[kPixels], dx[kPixels];
  };
  struct Shared {
    Weight weight;
    Offsets offsets[kTables];
    union {
      Stage stage[2];
      float row_sum[kThreads / OUT][OUT];
    };
  };

  const BackwardLaunch& l;
  Shared& shared;
  const int warp = thread_index() / 32, lane = thread_index() % 32;

  PW_DEVICE const Axis& pixels() const { return l.dw.segment[0].k; }
  PW_DEVICE bool by_pixel() const { return l.dx.pixels == Pixels::on_m; }
  PW_DEVICE const Axis& dx_pixels() const { return by_pixel() ? l.dx.m : l.dx.n; }
  PW_DEVICE const Steps& dx_pixel_steps() const { return by_pixel() ? l.dx.c.row : l.dx.c.col; }
  PW_DEVICE const Steps& dx_channel_steps() const { return by_pixel() ? l.dx.c.col : l.dx.c.row; }

  // Zeros beyond the channels there are.
  PW_DEVICE void load_weight() {
    const Matrix& w = by_pixel() ? l.dx.segment[0].b : l.dx.segment[0].a;
    const int64_t out = (by_pixel() ? w.row : w.col).step[kRank - 1], in = (by_pixel() ? w.col : w.row).step[kRank - 1];
    const int64_t out_count = l.dw.m.count(), in_count = l.dw.n.count();
#pragma unroll 1
    for (int e = thread_index(); e < OUT * IN; e += kThreads) {
      const int o = e / IN, i = e % IN;
      *shared.weight.at(i, o) = o < out_count && i < in_count ? static_cast<const T*>(w.data)[o * out + i * in] : T{};
    }
  }

  PW_DEVICE void fill_table(int64_t first, int step) {
    const Segment& s = l.dw.segment[0];
    const int operand = thread_index() / kPixels;
    Offsets& to = shared.offsets[step % kTables];
    if (operand > 3) return;
    int64_t (&table)[kPixels] = operand == 0 ? to.dy : operand == 1 ? to.x : operand == 2 ? to.saved : to.dx;
    const Steps& steps = operand == 0   ? s.a.col
                         : operand == 1 ? s.b.row
                         : operand == 2 ? l.dw.gate.saved.col
                                        : dx_pixel_steps();
    fill_offsets<kPixels, kPixels>(table, operand == 3 ? dx_pixels() : s.k, steps, (first + step) * kPixels);
  }

  PW_DEVICE void start_copies(int64_t first, int step) {
    const Segment& s = l.dw.segment[0];
    const Matrix& saved = l.dw.gate.saved;
    const Offsets& at = shared.offsets[step % kTables];
    Stage& to = shared.stage[step % 2];
    const int64_t left = pixels().count() - (first + step) * kPixels, out = l.dw.m.count(), in = l.dw.n.count();
#pragma unroll 1
    for (int i = 0; i <= (saved.data != nullptr); ++i)
      copy_operand<kThreads>(l.plan.access.a.bytes, static_cast<const T*>(i ? saved.data : s.a.data),
                             Channels(l.dw.m, i ? saved.row : s.a.row), i ? at.saved : at.dy, out, left,
                             i ? to.saved : to.dz);
    copy_operand<kThreads>(l.plan.access.b.bytes, static_cast<const T*>(s.b.data), Channels(l.dw.n, s.b.col), at.x, in,
                           left, to.x);
    if (l.dw.gate.mask.words)
      start_mask<kThreads>(l.dw.gate.mask, to.dz, Channels(l.dw.m, s.a.row), at.dy, 0, (first + step) * kPixels,
                           to.mask);
  }

  // dW += dZ X^T
  PW_DEVICE void multiply_weight(const Stage& stage, SumsW& sum) const {
    typename Multiply::A a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) Multiply::load(stage.dz, warp % kWarpsM * 64 + i * 16, 0, a[i]);
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      typename Multiply::B b[2];
      Multiply::load(stage.x, warp / kWarpsM * 32 + j * 8, 0, b);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int side = 0; side < 2; ++side) Multiply::multiply(sum[i][j + side], a[i], b[side]);
    }
  }

  // dX = W^T dZ, in the place of X; 16 rows after another, for their sums to take few registers
  PW_DEVICE void multiply_input(const Outputs& of_dz, Inputs& to) const {
    const Turned<Outputs> dz{of_dz};
#pragma unroll 1
    for (int block = 0; block < kBlocksX; ++block) {
      const int row = (warp % kRowsX * kBlocksX + block) * 16, half = kSidesX == 1 ? warp / kRowsX : 0;
      float sum[kSidesX][4] = {};
#pragma unroll 1
      for (int k = 0; k < OUT; k += Multiply::kDepth) {
        typename Multiply::A a;
        typename Multiply::B b[2];
        Multiply::load(shared.weight, row, k, a);
        Multiply::load(dz, 0, k, b);
        if (half) b[0] = b[1];
#pragma unroll
        for (int side = 0; side < kSidesX; ++side) Multiply::multiply(sum[side], a, b[side]);
      }
#pragma unroll
      for (int side = 0; side < kSidesX; ++side)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          *to.at(row + lane / 4 + e / 2 * 8, (half + side) * 8 + lane % 4 * 2 + e % 2) = narrow<T>(sum[side][e]);
    }
  }

  template <int N>
  PW_DEVICE void write_input(const Inputs& from, int64_t first, int step) const {
    constexpr int kRow = (ALONG_PIXELS ? kPixels : IN) / N;
    const Channels side(l.dw.n, dx_channel_steps());
    const Offsets& at = shared.offsets[step % kTables];
    const int64_t left_k = pixels().count() - (first + step) * kPixels, left_x = l.dw.n.count();
#pragma unroll 1
    for (int e = thread_index(); e < IN * kPixels / N; e += kThreads) {
      const int inner = e % kRow * N, outer = e / kRow;
      const int x = ALONG_PIXELS ? outer : inner, k = ALONG_PIXELS ? inner : outer;
      if (side[x] == kOutside || at.dx[k] == kOutside) continue;
      const int64_t left = ALONG_PIXELS ? left_k - k : left_x - x;
      Run<T, N> run;
      run.load(from.at(x, k), N);
      run.store(static_cast<T*>(l.dx.c.data) + (side[x] + at.dx[k]), left < N ? int(left) : N);
    }
  }

  PW_DEVICE void walk(int64_t first, int steps, SumsW& sum, float& rows) {
    fill_table(first, 0);
    sync_threads();  // the table is filled, and W
    start_copies(first, 0);
    copy_async_commit();
    if (1 < steps) fill_table(first, 1);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      Stage& stage = shared.stage[step % 2];
      copy_async_wait<0>();
      sync_threads();  // the tile is complete, the one before has been written, and the next one's table is filled
      if (step + 1 < steps) start_copies(first, step + 1);
      copy_async_commit();
      if (step + 2 < steps) fill_table(first, step + 2);
      if (l.dw.gate.mask.words)
        apply_mask<kThreads>(l.dw.gate.activation, stage.dz, stage.mask, int((first + step) * kPixels % 32));
      else if (l.dw.gate.saved.data)
        apply_gate<kThreads>(l.dw.gate.activation, stage.dz, stage.saved);
      if (l.dw.gate.present()) sync_threads();  // dZ is complete
      if (l.dw.row_sums) rows += add_row<kThreads>(stage.dz);
      multiply_weight(stage, sum);
      sync_threads();  // X has been read
      multiply_input(stage.dz, stage.x);
      sync_threads();  // dX is complete
      if (l.plan.write_bytes == 16)
        write_input<8>(stage.x, first, step);
      else if (l.plan.write_bytes == 8)
        write_input<4>(stage.x, first, step);
      else
        write_input<1>(stage.x, first, step);
    }
    sync_threads();  // the stages' memory becomes the row sums', and tables are free
  }

  PW_DEVICE void write_partials(const SumsW& sum, float rows, float* to) {
    const int64_t out = l.dw.m.count(), in = l.dw.n.count(), columns = partial_columns(l.dw);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int m = warp % kWarpsM * 64 + i * 16 + lane / 4 + e / 2 * 8;
          const int n = warp / kWarpsM * 32 + j * 8 + lane % 4 * 2 + e % 2;
          if (m < out && n < in) to[m * columns + n] = sum[i][j][e];
        }
    if (!l.dw.row_sums) return;
    shared.row_sum[thread_index() / OUT][thread_index() % OUT] = rows;
    sync_threads();  // all parts of a row are there
    if (const int m = thread_index(); m < OUT && m < out) {
      float total = 0;
      for (int part = 0; part < kThreads / OUT; ++part) total += shared.row_sum[part][m];
      to[m * columns + in] = total;
    }
    sync_threads();  // the sums have been read
  }
};

template <class Kernel>
PW_KERNEL(kBackwardThreads, kBackwardBlocks)
backward_mma(PW_PARAMETER BackwardLaunch l) {
  Kernel kernel{l, shared_memory<typename Kernel::Shared>()};
  kernel.load_weight();
  for (int64_t share = block_index(); share < l.plan.splits; share += grid_size()) {
    typename Kernel::SumsW sum = {};
    float rows = 0;
    const int64_t first = share * l.plan.tiles_per_split, rest = l.plan.tiles - first;
    kernel.walk(first, int(rest < l.plan.tiles_per_split ? rest : l.plan.tiles_per_split), sum, rows);
    kernel.write_partials(sum, rows, l.workspace + share * l.dw.m.count() * partial_columns(l.dw));
  }
}

}  // namespace pw
