// gemm_mma without what few products need: every operand is read and written 16 bytes at a time, at offsets that fit 32
// bits (is_lean() in plan.h). What it computes, the tiles and the order of sums are the same.
//
// Where gemm_mma looks offsets up, a thread keeps those of its vectors, the same for all steps of a tile: a step moves
// the operands' bases. Rows beyond the end are read as the last one's, and not written.
#pragma once
#include "gemm_mma.cuh"

namespace pw {

// Of an index along an axis of two dimensions: a division, which is worth a call.
PW_CALLED uint32_t nested_offset(uint32_t inner, uint32_t inner_step, uint32_t outer_step, uint32_t index) {
  const uint32_t outer = index / inner;
  return (index - outer * inner) * inner_step + outer * outer_step;
}
PW_DEVICE uint32_t lean_offset(bool flat, const Axis& axis, const Steps& steps, uint32_t index) {
  const uint32_t inner = uint32_t(axis.size[kRank - 1]), step = uint32_t(steps.step[kRank - 1]);
  return flat ? index * step : nested_offset(inner, step, uint32_t(steps.step[kRank - 2]), index);
}
PW_DEVICE uint32_t lean_count(const Axis& axis) { return uint32_t(axis.size[kRank - 2]) * uint32_t(axis.size[kRank - 1]); }

// How THREADS copy a tile of one operand.
template <int THREADS, class Tile>
struct LeanCopies {
  using T = typename Tile::Element;
  static constexpr int kVector = 16 / sizeof(T), kRow = Tile::kInner / kVector, kRows = THREADS / kRow;
  static constexpr int kCount = Tile::kSize * Tile::kDepth / Tile::kInner / kRows;  // vectors of a thread
  static constexpr int kOffsets = Tile::kAlongK ? kCount : 1;
  static_assert(THREADS % kRow == 0 && kCount > 0, "whole rows");

  uint32_t offset[kOffsets];

  PW_DEVICE static int inner() { return thread_index() % kRow * kVector; }
  PW_DEVICE static int outer() { return thread_index() / kRow; }

  // `k_inner`: whether the offsets hold the thread's place along k
  PW_DEVICE void enter(bool flat, const Axis& axis, const Steps& steps, uint32_t x0, uint32_t k_step, bool k_inner) {
    const uint32_t last = lean_count(axis) - (Tile::kAlongK ? 1 : kVector);
#pragma unroll
    for (int i = 0; i < kOffsets; ++i) {
      const uint32_t x = x0 + (Tile::kAlongK ? outer() + i * kRows : inner());
      offset[i] = lean_offset(flat, axis, steps, x < last ? x : last) +
                  (!Tile::kAlongK ? outer() * k_step : k_inner ? inner() : 0);
    }
  }

  // Of a step with `left` values of k, at most kDepth; `more`: elements beyond the offsets.
  PW_DEVICE void start(const T* base, uint32_t more, uint32_t k_step, int left, Tile& to) const {
    if (left >= Tile::kDepth) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) copy_async_whole(place(to, i), from(base, more, k_step, i));
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const bool inside = (Tile::kAlongK ? inner() : outer() + i * kRows) < left;
        copy_async<16>(place(to, i), inside ? from(base, more, k_step, i) : base, inside ? 16 : 0);
      }
    }
  }

 private:
  PW_DEVICE static T* place(Tile& to, int i) {
    return Tile::kAlongK ? to.at(outer() + i * kRows, inner()) : to.at(inner(), outer() + i * kRows);
  }
  PW_DEVICE const T* from(const T* base, uint32_t more, uint32_t k_step, int i) const {
    return base + (Tile::kAlongK ? offset[i % kOffsets] + more : offset[0] + i * kRows * k_step);
  }
};

// The steps of a block, tile after tile.
template <class Traits>
struct LeanStream {
  using T = typename Traits::T;
  using TileA = typename Traits::TileA;
  using TileB = typename Traits::TileB;
  using Shared = MmaShared<Traits>;
  static constexpr int kThreads = Traits::kThreads, kDepth = TileA::kDepth;
  static constexpr bool kNests = TileA::kAlongK && TileB::kAlongK;  // k may have two dimensions

  const Gemm& g;
  const GemmLaunch& launch;
  const MmaTiles<Traits>& tiles;
  uint32_t index = block_index();  // of the tile
  int left_tile = 0;               // steps
  int left = 0;                    // values of k of the segment, or of the share
  int segment = -1;
  LeanCopies<kThreads, TileA> a;
  LeanCopies<kThreads, TileB> b;
  const T *base_a = nullptr, *base_b = nullptr;
  const uint32_t* words = nullptr;     // the thread's of the mask
  int inner = 0, more_a = 0, more_b = 0;  // where k has two dimensions

  PW_DEVICE bool nested() const { return kNests && !launch.plan.flat_k; }
  PW_DEVICE bool copies_a() const { return !tiles.a_stays || index == block_index(); }
  PW_DEVICE bool copies_b() const { return !tiles.b_stays || index == block_index(); }

  template <class Tile>
  PW_DEVICE static uint32_t k_step(const Steps& steps) {
    return Tile::kAlongK ? 1 : uint32_t(steps.step[kRank - 1]);
  }

  PW_DEVICE void enter(bool tile) {
    const LeanWork w = find_lean_work(g, launch.plan, index);
    int k = 0;
    if (tile) {
      left_tile = steps_of(launch.plan, w.split), segment = 0;
      int skip = w.split * int(launch.plan.steps_per_split);
      for (;; ++segment) {
        const int steps = (int(lean_count(g.segment[segment].k)) + kDepth - 1) / kDepth;
        if (skip < steps) break;
        skip -= steps;
      }
      k = skip * kDepth;
    } else {
      do ++segment;
      while (lean_count(g.segment[segment].k) == 0);
    }
    const Segment& s = g.segment[segment];
    left = int(lean_count(s.k)) - k;
    const uint32_t step_a = k_step<TileA>(s.a.col), step_b = k_step<TileB>(s.b.row);
    base_a = static_cast<const T*>(s.a.data), base_b = static_cast<const T*>(s.b.data);
    if (copies_a()) a.enter(launch.plan.flat_m, g.m, s.a.row, w.m0, step_a, !nested());
    if (copies_b()) b.enter(launch.plan.flat_n, g.n, s.b.col, w.n0, step_b, !nested());
    if (nested()) {
      const uint32_t size = uint32_t(s.k.size[kRank - 1]), at = k + a.inner(), image = at / size;
      inner = at - image * size;
      more_a = inner + image * int(s.a.col.step[kRank - 2]), more_b = inner + image * int(s.b.row.step[kRank - 2]);
    } else {
      base_a += uint32_t(k) * step_a, base_b += uint32_t(k) * step_b;
    }
    if (g.gate.mask.words)
      words = g.gate_on_a() ? mask_words<TileA>(w.m0, lean_count(g.m), k) : mask_words<TileB>(w.n0, lean_count(g.n), k);
  }

  template <class Tile>
  PW_DEVICE const uint32_t* mask_words(uint32_t x0, uint32_t count, int k) const {
    constexpr int kRow = MaskTile<Tile>::kRow;
    const Mask& mask = g.gate.mask;
    const int i = thread_index(), outer = i / kRow, bit = i % kRow * 32;
    const uint32_t x = x0 + (Tile::kAlongK ? outer : bit);
    if (i >= MaskTile<Tile>::kWords || x >= count) return nullptr;
    return mask.words + (Tile::kAlongK ? x * mask.pitch + k / 32 : (k + outer) * mask.pitch + x / 32);
  }
  template <class Tile>
  PW_DEVICE void start_mask(uint32_t* to) const {
    const int i = thread_index();
    if (i >= MaskTile<Tile>::kWords) return;
    const bool inside = words && (Tile::kAlongK || i / MaskTile<Tile>::kRow < left);
    copy_async<4>(to + i, inside ? words : g.gate.mask.words, inside ? 4 : 0);
  }

  // Starts the copies of the next step, if there is one, and closes their group.
  PW_DEVICE void next(int stage) {
    if (left_tile == 0 || left <= 0) {
      if (index < uint32_t(launch.plan.work())) enter(left_tile == 0);
    }
    if (left_tile > 0) {
      const Segment& s = g.segment[segment];
      const int step = int(launch.plan.steps) - left_tile;  // where W stays
      const uint32_t step_a = k_step<TileA>(s.a.col), step_b = k_step<TileB>(s.b.row);
      if (copies_a()) a.start(base_a, nested() ? more_a : 0, step_a, left, tiles.a(stage, step));
      if (copies_b()) b.start(base_b, nested() ? more_b : 0, step_b, left, tiles.b(stage, step));
      if (g.gate.mask.words) {
        uint32_t* const to = Shared::masked().mask[stage];
        if (g.gate_on_a())
          start_mask<TileA>(to);
        else
          start_mask<TileB>(to);
      }
      advance(s, step_a, step_b);
    }
    copy_async_commit();
  }

  PW_DEVICE void advance(const Segment& s, uint32_t step_a, uint32_t step_b) {
    left -= kDepth;
    if (g.gate.mask.words && words) {
      const bool along_k = g.gate_on_a() ? TileA::kAlongK : TileB::kAlongK;
      const int done = int(lean_count(s.k)) - left;
      words += !along_k ? kDepth * g.gate.mask.pitch : done / 32 - (done - kDepth) / 32;
    }
    if (--left_tile == 0) {
      index += uint32_t(grid_size());
      return;
    }
    if (!nested()) {
      base_a += kDepth * step_a, base_b += kDepth * step_b;
      return;
    }
    const int size = int(s.k.size[kRank - 1]);
    inner += kDepth, more_a += kDepth, more_b += kDepth;
    if (inner < size) return;
    inner -= size;
    more_a += int(s.a.col.step[kRank - 2]) - size, more_b += int(s.b.row.step[kRank - 2]) - size;
  }
};

// Finishes a warp's 16 rows with everything a product may end with, `row` the first one in the tile. A function that is
// called: its instructions would keep the others from the cache.
template <class Traits>
PW_CALLED void finish_rows(const Gemm& g, const GemmLaunch& launch, LeanWork w, int row, int bias_table) {
  using T = typename Traits::T;
  using Writer = MmaWriter<Traits>;
  constexpr int kRun = Writer::kRun, kRuns = Traits::kWarpN / kRun, kRows = 32 / kRuns;
  const Writer writer{g, launch, output<Traits>(), 0, bias_table};
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

template <class Traits>
struct GemmLean {
  using T = typename Traits::T;
  using Multiply = typename Traits::Multiply;
  using TileA = typename Traits::TileA;
  using TileB = typename Traits::TileB;
  using Shared = MmaShared<Traits>;
  using Writer = MmaWriter<Traits>;
  using Sums = typename Traits::Sums;
  static constexpr int kThreads = Traits::kThreads, kDepth = TileA::kDepth;
  static constexpr int kPromoteSteps = 64 / kDepth;

  const Gemm& g;
  const GemmLaunch& launch;

  // Whether nothing but a bias and a ReLU is left to do: then `write` has it inline, and nothing that it does not need.
  PW_DEVICE bool is_simple() const {
    return !g.residual.data && !g.mask.words && (g.activation.kind == Act::none || g.activation.kind == Act::relu);
  }

  // A warp's rows, 16 after another.
  PW_DEVICE void write(const LeanWork& w, const Sums& sum, const Writer& writer) const {
    constexpr int kRun = Writer::kRun, kRuns = Traits::kWarpN / kRun, kRows = 32 / kRuns;
    const int lane = thread_index() % 32, x = lane % kRuns * kRun;
    const int column = Writer::column_of_warp() + x, row = Writer::row_of_warp();
    float (&slab)[16][Writer::Output::kPitch] = writer.out.sum[thread_index() / 32];
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
        finish_rows<Traits>(g, launch, w, row + part * 16, writer.bias_table);
      } else {
#pragma unroll
        for (int turn = 0; turn < 16; turn += kRows) {
          const int y = turn + lane / kRuns;
          const uint32_t m = w.m0 + row + part * 16 + y;
          if (!there || m >= lean_count(g.m)) continue;
          Run<float, kRun> v;
          v.load(&slab[y][x], kRun);
          writer.add_bias(v, row + part * 16 + y, column);
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

  PW_DEVICE void finish(uint32_t index, const Sums& sum, float rows, Writer& writer) const {
    const LeanWork w = find_lean_work(g, launch.plan, index);
    float* partials = nullptr;
    if (launch.plan.splits > 1)
      partials = static_cast<float*>(launch.workspace) + w.split * (g.m.count() * partial_columns(g));
    if (g.row_sums && w.n0 == 0) writer.write_row_sums({w.m0, w.n0, 0, w.split}, rows, partials);
    if (partials)
      write_partials(w, sum, partials);
    else
      write(w, sum, writer);
  }

  // Pairs of neighbours, as lanes hold them: four lanes have 32 bytes that lie together.
  PW_DEVICE void write_partials(const LeanWork& w, const Sums& sum, float* partials) const {
    const int lane = thread_index() % 32;
    const uint32_t columns = uint32_t(partial_columns(g)), n = w.n0 + Writer::column_of_warp() + lane % 4 * 2;
    const uint32_t first = w.m0 + Writer::row_of_warp() + lane / 4;
    const int rows = int(lean_count(g.m)) - int(first), left = int(lean_count(g.n)) - int(n);  // a count of pairs
    float* const to = partials + int64_t(first) * columns + n;
#pragma unroll
    for (int i = 0; i < Traits::kBlocksM * 2; ++i)
      if (i * 8 < rows)
#pragma unroll
        for (int j = 0; j < Traits::kBlocksN; ++j)
          if (j * 8 < left)
            Run<float, 2>{{sum[i / 2][j][i % 2 * 2], sum[i / 2][j][i % 2 * 2 + 1]}}.store(to + i * 8 * columns + j * 8, 2);
  }

  PW_DEVICE void run() const {
    const MmaTiles<Traits> tiles(g, launch.plan);
    LeanStream<Traits> stream{g, launch, tiles};
    Writer writer{g, launch, Shared::plain().output};
    Sums sum = {}, part = {};
    float rows = 0;
    uint32_t index = block_index();
    int stage = 0, step = 0, steps = 0, ahead = kStages - 1;
    bool adds = false;
#pragma unroll 1
    for (;;) {
      if (ahead == 0 && step == 0) {  // a tile begins
        if (index >= uint32_t(launch.plan.work())) break;
        const LeanWork w = find_lean_work(g, launch.plan, index);
        steps = steps_of(launch.plan, w.split), adds = g.row_sums && w.n0 == 0;
        writer.prepare({w.m0, w.n0, 0, w.split});
      }
      copy_async_wait<kStages - 2>();
      sync_threads();  // the stage is complete, and the one before has been read
      if (ahead > 0) {
        stream.next(kStages - 1 - ahead), --ahead;
        continue;
      }
      stream.next(stage == 0 ? kStages - 1 : stage - 1);
      if (g.gate.mask.words) {
        const int skip = (launch.plan.splits == 1 ? step : step + split_of(index) * int(launch.plan.steps_per_split)) *
                         kDepth % 32;
        if (g.gate_on_a())
          apply_mask<kThreads>(g.gate.activation, Shared::plain().a.stage[stage], Shared::masked().mask[stage], skip);
        else
          apply_mask<kThreads>(g.gate.activation, Shared::plain().b.stage[stage], Shared::masked().mask[stage], skip);
        sync_threads();  // dZ is complete
      }
      if (adds) rows += add_row<kThreads>(tiles.a(stage, step));
      if constexpr (Multiply::kPromotes) {
        GemmMma<Traits>::multiply(tiles.a(stage, step), tiles.b(stage, step), part);
        if (step % kPromoteSteps == kPromoteSteps - 1 || step + 1 == steps) GemmMma<Traits>::move(part, sum);
      } else {
        GemmMma<Traits>::multiply(tiles.a(stage, step), tiles.b(stage, step), sum);
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
      if (++step < steps) continue;
      finish(index, sum, rows, writer);
      index += uint32_t(grid_size()), step = 0, rows = 0;
#pragma unroll
      for (int i = 0; i < Traits::kBlocksM; ++i)
#pragma unroll
        for (int j = 0; j < Traits::kBlocksN; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
    }
  }

  PW_DEVICE int split_of(uint32_t index) const { return find_lean_work(g, launch.plan, index).split; }
};

template <class Traits>
PW_KERNEL(Traits::kThreads, Traits::kBlocks)
gemm_lean(PW_PARAMETER Gemm g, PW_PARAMETER GemmLaunch launch) {
  GemmLean<Traits>{g, launch}.run();
}

}  // namespace pw
