// The steps of a block of gemm_lean, tile after tile: each is copied while the one before is multiplied, the next
// tile's first one also while this tile is being written.
#pragma once
#include "lean_shared.cuh"

namespace pw {

// Elements from index `x` of an axis to the one `by` behind it. A function that is called: few layers have two
// dimensions where their operands lie along k (a stride in channels_last).
PW_CALLED uint32_t jump(const LeanAxis& axis, const LeanSteps& steps, uint32_t x, uint32_t by) {
  return axis.offset(steps, x + by) - axis.offset(steps, x);
}

// How THREADS copy a tile of one operand. What is beyond the end is not read: zeros take its place.
template <int THREADS, class Tile>
struct LeanCopies {
  using T = typename Tile::Element;
  static constexpr int kVector = 16 / sizeof(T), kRow = Tile::kInner / kVector, kRows = THREADS / kRow;
  static constexpr int kCount = Tile::kSize * Tile::kDepth / Tile::kInner / kRows;  // vectors of a thread
  static_assert(THREADS % kRow == 0 && kCount > 0, "whole rows");

  uint32_t to;          // the thread's first vector of the first tile
  uint32_t offset = 0;  // of it in memory, in elements
  int left = 0;         // rows or columns of the operand from its own on

  PW_DEVICE static int inner() { return thread_index() % kRow * kVector; }
  PW_DEVICE static int outer() { return thread_index() / kRow; }

  PW_DEVICE explicit LeanCopies(const LeanPlace& place)
      : to(place.first +
           (Tile::kAlongK ? Tile::offset(outer(), inner()) : Tile::offset(inner(), outer())) * sizeof(T)) {}

  // A tile that begins at x0.
  PW_DEVICE void enter(const LeanAxis& axis, const LeanSteps& steps, uint32_t x0, uint32_t k_step) {
    const uint32_t first = x0 + (Tile::kAlongK ? outer() : inner());
    left = int(axis.count) - int(first);
    offset = axis.offset(steps, first) + (Tile::kAlongK ? inner() : outer() * k_step);
  }

  // Of a step that `left_k` values of k are left for, to a tile so many bytes behind the first.
  PW_DEVICE void start(const T* base, const LeanAxis& axis, const LeanSteps& steps, uint32_t k_step, int left_k,
                       uint32_t behind) const {
    T* const first = shared_at<T>(to + behind);
    const int along = left_k - (Tile::kAlongK ? inner() : outer());
    const auto copy = [&](int i, uint32_t from) {
      const bool inside = Tile::kAlongK ? along > 0 && i * kRows < left : left > 0 && i * kRows < along;
      copy_async<16>(first + i * kRows * Tile::kPitch, base + from, inside ? 16 : 0);
    };
    if (Tile::kAlongK && !axis.flat) {
#pragma unroll 1
      for (int i = 0; i < kCount; ++i) copy(i, offset + jump(axis, steps, axis.count - left, i * kRows));
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) copy(i, offset + i * kRows * (Tile::kAlongK ? steps.inner : k_step));
  }
};

// Where what copy_operand() reads lies along an axis, from `first` on.
struct LeanOffsets {
  const LeanAxis& axis;
  LeanSteps steps;
  uint32_t first;
  PW_DEVICE int64_t operator[](int i) const {
    return first + i < axis.count ? int64_t(axis.offset(steps, first + i)) : kOutside;
  }
};

template <class Traits>
struct LeanStream {
  using T = typename Traits::T;
  using TileA = typename Traits::TileA;
  using TileB = typename Traits::TileB;
  using Shared = LeanShared<Traits>;
  static constexpr int kThreads = Traits::kThreads, kDepth = Traits::kDepth;
  static constexpr bool kNests = TileA::kAlongK && TileB::kAlongK;  // k may have two dimensions

  const LeanLaunch& l;
  uint32_t index = block_index();  // of the tile
  int left_tile = 0;               // steps
  int left = 0;                    // values of k of the segment, or of the share
  int segment = -1;
  LeanCopies<kThreads, TileA> a{l.a};
  LeanCopies<kThreads, TileB> b{l.b};
  const T *base_a = nullptr, *base_b = nullptr;
  uint32_t step_a = 1, step_b = 1;  // elements from one value of k to the next
  int inner = 0;                    // where k has two dimensions: the thread's place along the inner one

  PW_DEVICE bool nested() const { return kNests && Traits::kWide && !l.segment[0].k.flat; }

  // The next segment, or the first one of the next tile.
  PW_DEVICE void enter() {
    const LeanWork w = l.find(index, Traits::kTileM, Traits::kTileN);
    int k = 0;
    if (left_tile == 0) {
      left_tile = l.steps_of(w.split), segment = 0;
      int skip = w.split * l.steps_per_split;
      for (;; ++segment) {
        const int steps = (int(l.segment[segment].k.count) + kDepth - 1) / kDepth;
        if (skip < steps) break;
        skip -= steps;
      }
      k = skip * kDepth;
    } else {
      do ++segment;
      while (l.segment[segment].k.count == 0);
    }
    const LeanSegment& s = l.segment[segment];
    left = int(s.k.count) - k;
    if (!TileA::kAlongK) step_a = s.a.col.inner;
    if (!TileB::kAlongK) step_b = s.b.row.inner;
    base_a = of_group<T>(s.a.data, l.groups.a[0], w.group), base_b = of_group<T>(s.b.data, l.groups.b[0], w.group);
    if (!Traits::kWide) return;
    a.enter(l.m, s.a.row, w.m0, step_a);
    b.enter(l.n, s.b.col, w.n0, step_b);
    if (nested()) {
      const uint32_t at = k + a.inner(), image = s.k.inner.divide(at);
      inner = at - image * s.k.inner.divisor;
      a.offset += inner - a.inner() + image * s.a.col.outer;
      b.offset += inner - b.inner() + image * s.b.row.outer;
    } else {
      base_a += uint32_t(k) * step_a, base_b += uint32_t(k) * step_b;
    }
  }

  // Starts the copies of a mask's words for a step of dY that begins at (x0, k0); beyond the end there are zeros.
  template <class Tile>
  PW_DEVICE void start_mask(uint32_t* to, uint32_t x0, uint32_t count, int k0) const {
    constexpr int kRow = MaskTile<Tile>::kRow, kWords = MaskTile<Tile>::kWords;
    const uint32_t row0 = Tile::kAlongK ? x0 : k0, bit0 = Tile::kAlongK ? k0 : x0;
    const int left_x = int(count - x0), rows = Tile::kAlongK ? left_x : left, bits = Tile::kAlongK ? left : left_x;
#pragma unroll 1
    for (int i = thread_index(); i < kWords; i += kThreads) {
      const int row = i / kRow, word = i % kRow;
      const bool inside = row < rows && word * 32 < bits;
      const uint32_t* const from = l.gate_mask + (int64_t(row0 + row) * l.gate_pitch + bit0 / 32 + word);
      copy_async<4>(to + i, inside ? from : l.gate_mask, inside ? 4 : 0);
    }
  }

  // Starts the copies of the next step, if there is one, and closes their group.
  PW_DEVICE void next(int stage) {
    if (left <= 0 && index < l.work) enter();
    if (left > 0) {
      const bool first = index == block_index();
      const int step = l.steps - left_tile;  // where W stays
      const LeanSegment& s = l.segment[segment];
      const uint32_t behind_a = stage * l.a.by_stage + step * l.a.by_step;
      const uint32_t behind_b = stage * l.b.by_stage + step * l.b.by_step;
      if constexpr (Traits::kWide) {
        if (!l.a_stays || first) a.start(base_a, l.m, s.a.row, step_a, left, behind_a);
        if (!l.b_stays || first) b.start(base_b, l.n, s.b.col, step_b, left, behind_b);
      } else {
        const uint32_t k0 = s.k.count - left;
        const LeanWork w = l.find(index, Traits::kTileM, Traits::kTileN);
        if (!l.a_stays || first)
          copy_operand<kThreads>(l.a_bytes, base_a, LeanOffsets{l.m, s.a.row, w.m0}, LeanOffsets{s.k, s.a.col, k0},
                                 int64_t(l.m.count) - w.m0, left, *shared_at<TileA>(l.a.first + behind_a));
        if (!l.b_stays || first)
          copy_operand<kThreads>(l.b_bytes, base_b, LeanOffsets{l.n, s.b.col, w.n0}, LeanOffsets{s.k, s.b.row, k0},
                                 int64_t(l.n.count) - w.n0, left, *shared_at<TileB>(l.b.first + behind_b));
      }
      if (l.gated) {
        const LeanWork w = l.find(index, Traits::kTileM, Traits::kTileN);
        const int k0 = int(s.k.count) - left;
        if (l.gate_on_a)
          start_mask<TileA>(Shared::masked().mask[stage], w.m0, l.m.count, k0);
        else
          start_mask<TileB>(Shared::masked().mask[stage], w.n0, l.n.count, k0);
      }
      advance();
    }
    copy_async_commit();
  }

  PW_DEVICE void advance() {
    left -= kDepth;
    if (--left_tile == 0) index += uint32_t(grid_size()), left = 0;
    if (!Traits::kWide) return;
    if (!nested()) {
      base_a += kDepth * step_a, base_b += kDepth * step_b;
      return;
    }
    const LeanSegment& s = l.segment[0];
    const int size = int(s.k.inner.divisor);
    inner += kDepth;
    const bool ends = inner >= size;
    if (ends) inner -= size;
    a.offset += kDepth + (ends ? int(s.a.col.outer) - size : 0);
    b.offset += kDepth + (ends ? int(s.b.row.outer) - size : 0);
  }
};

}  // namespace pw
