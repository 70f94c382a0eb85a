// The steps of a block of gemm_lean, tile after tile: each is copied kStages - 1 steps before it is multiplied, the
// next tile's first ones while this tile is being written.
#pragma once
#include "lean_shared.cuh"
#include "work.cuh"

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
PW_DEVICE uint32_t lean_count(const Axis& axis) {
  return uint32_t(axis.size[kRank - 2]) * uint32_t(axis.size[kRank - 1]);
}

// How THREADS copy a tile of one operand.
template <int THREADS, class Tile>
struct LeanCopies {
  using T = typename Tile::Element;
  static constexpr int kVector = 16 / sizeof(T), kRow = Tile::kInner / kVector, kRows = THREADS / kRow;
  static constexpr int kCount = Tile::kSize * Tile::kDepth / Tile::kInner / kRows;  // vectors of a thread
  static constexpr int kOffsets = Tile::kAlongK ? kCount : 1;
  static_assert(THREADS % kRow == 0 && kCount > 0, "whole rows");

  // Beyond the end nothing is copied, and what was multiplied is not written: that all read the last row instead took
  // twice as long, 64 -> 32 channels at 28x28.
  static constexpr uint32_t kNowhere = ~0u;
  uint32_t offset[kOffsets];

  PW_DEVICE static int inner() { return thread_index() % kRow * kVector; }
  PW_DEVICE static int outer() { return thread_index() / kRow; }

  // `k_inner`: whether the offsets hold the thread's place along k
  PW_DEVICE void enter(bool flat, const Axis& axis, const Steps& steps, uint32_t x0, uint32_t k_step, bool k_inner) {
    const uint32_t count = lean_count(axis);
#pragma unroll
    for (int i = 0; i < kOffsets; ++i) {
      const uint32_t x = x0 + (Tile::kAlongK ? outer() + i * kRows : inner());
      const uint32_t along = !Tile::kAlongK ? outer() * k_step : k_inner ? inner() : 0;
      offset[i] = x < count ? lean_offset(flat, axis, steps, x) + along : kNowhere;
    }
  }

  // Of a step with `left` values of k, at most kDepth; `more`: elements beyond the offsets.
  PW_DEVICE void start(const T* base, uint32_t more, uint32_t k_step, int left, Tile& to) const {
    if (left >= Tile::kDepth) {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (is_there(i)) copy_async_whole(place(to, i), from(base, more, k_step, i));
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const bool inside = is_there(i) && (Tile::kAlongK ? inner() : outer() + i * kRows) < left;
        copy_async<16>(place(to, i), inside ? from(base, more, k_step, i) : base, inside ? 16 : 0);
      }
    }
  }

 private:
  PW_DEVICE bool is_there(int i) const { return offset[i % kOffsets] != kNowhere; }
  PW_DEVICE static T* place(Tile& to, int i) {
    return Tile::kAlongK ? to.at(outer() + i * kRows, inner()) : to.at(inner(), outer() + i * kRows);
  }
  PW_DEVICE const T* from(const T* base, uint32_t more, uint32_t k_step, int i) const {
    return base + (Tile::kAlongK ? offset[i % kOffsets] + more : offset[0] + i * kRows * k_step);
  }
};

template <class Traits>
struct LeanStream {
  using T = typename Traits::T;
  using TileA = typename Traits::TileA;
  using TileB = typename Traits::TileB;
  using Shared = LeanShared<Traits>;
  static constexpr int kThreads = Traits::kThreads, kDepth = TileA::kDepth;
  static constexpr bool kNests = TileA::kAlongK && TileB::kAlongK;  // k may have two dimensions

  const Gemm& g;
  const GemmLaunch& launch;
  const LeanTiles<Traits>& tiles;
  uint32_t index = block_index();  // of the tile
  int left_tile = 0;               // steps
  int left = 0;                    // values of k of the segment, or of the share
  int segment = -1;
  LeanCopies<kThreads, TileA> a;
  LeanCopies<kThreads, TileB> b;
  const T *base_a = nullptr, *base_b = nullptr;
  const uint32_t* words = nullptr;        // the thread's of the mask
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

}  // namespace pw
