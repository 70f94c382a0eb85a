// The steps of a block of gemm_mma, tile after tile: each is copied kStages - 1 steps before it is multiplied, the next
// tile's first ones while this tile is being written.
#pragma once
#include "mma_shared.cuh"
#include "work.cuh"

namespace pw {

// How an operand's steps are copied. Whole ones have all rows, 16 bytes at a time, along a k of one dimension.
enum class How : int { not_at_all, whole, any };

// The next step. Registers are short: what follows from the problem is worked out anew where it is needed.
template <class T>
struct Cursor {
  int left = 0;          // steps of the tile's share
  int left_segment = 0;  // and of its segment
  int left_inner = 0;    // values of k along the innermost dimension, where there are several
  int segment = 0;
  How how_a = How::not_at_all, how_b = How::not_at_all;
  Place<T> a, b;
  const void* beside = nullptr;  // where the saved tensor begins, as dY does, or the thread's row of bits in the mask
};

template <class Traits>
struct MmaSource {
  using T = typename Traits::T;
  using TileA = typename Traits::TileA;
  using TileB = typename Traits::TileB;
  using Shared = MmaShared<Traits>;
  static constexpr int kThreads = Traits::kThreads, kDepth = TileA::kDepth;
  using CopiesA = Copies<kThreads, TileA>;
  using CopiesB = Copies<kThreads, TileB>;

  const Gemm& g;
  const GemmLaunch& launch;

  PW_DEVICE bool flat() const { return launch.plan.flat_k; }
  // Whether the block's tile number `turn` copies the operand: W that stays is there after the first one.
  PW_DEVICE bool copies_a(int turn) const { return !turn || !launch.plan.weight_stays() || g.pixels != Pixels::on_n; }
  PW_DEVICE bool copies_b(int turn) const { return !turn || !launch.plan.weight_stays() || g.pixels != Pixels::on_m; }

  PW_DEVICE const T* data_a(int segment, int group) const {
    return Operands<T>::moved(g.segment[segment].a.data, launch.groups.a[segment], group);
  }
  PW_DEVICE const T* data_b(int segment, int group) const {
    return Operands<T>::moved(g.segment[segment].b.data, launch.groups.b[segment], group);
  }
  PW_DEVICE const T* data_saved(int group) const {
    return Operands<T>::moved(g.gate.saved.data, launch.groups.saved, group);
  }

  // The next step's first value of k within its segment, and how many there are.
  PW_DEVICE int64_t first_k(const Cursor<T>& c) const {
    return ((g.segment[c.segment].k.count() + kDepth - 1) / kDepth - c.left_segment) * kDepth;
  }
  PW_DEVICE int values(const Cursor<T>& c) const {
    return c.left_segment > 1 ? kDepth : int((g.segment[c.segment].k.count() - 1) % kDepth) + 1;
  }
  PW_DEVICE int left_inner(int segment, int64_t k) const {
    const int64_t size = g.segment[segment].k.size[kRank - 1], rest = size - (k - divide(k, size) * size);
    return int(rest < INT_MAX ? rest : INT_MAX);
  }
};

// Goes to the first step of the block's tile number `turn` or, within a tile, to the next segment. Fills the tables
// for all to see after the next barrier.
template <class Traits>
PW_CALLED Cursor<typename Traits::T> enter(const Gemm& g, const GemmLaunch& launch, int turn, int table,
                                           int left, int segment) {
  using Source = MmaSource<Traits>;
  using CopiesA = typename Source::CopiesA;
  using CopiesB = typename Source::CopiesB;
  const Source source{g, launch};
  constexpr int kDepth = Source::kDepth;
  Cursor<typename Traits::T> c;
  const Work w = find_work(g, launch.plan, block_index() + turn * grid_size());
  int64_t skip = 0, steps;
  if (left == 0) {
    left = steps_of(launch.plan, w.split), segment = -1;
    skip = w.split * launch.plan.steps_per_split;
  }
  for (;; skip -= steps) {
    steps = (g.segment[++segment].k.count() + kDepth - 1) / kDepth;
    if (skip < steps) break;
  }
  c.left = left, c.segment = segment, c.left_segment = int(steps - skip);
  const Segment& s = g.segment[segment];
  const Access& access = launch.plan.access;
  auto& shared = Source::Shared::plain();
  const int64_t k = skip * kDepth;
  const bool flat = source.flat();
  const auto how = [&](int bytes, int64_t rows, int of) {
    return bytes == 16 && flat && rows >= of ? How::whole : How::any;
  };
  if (!flat) c.left_inner = source.left_inner(segment, k);
  if (source.copies_a(turn)) {
    c.how_a = how(access.a.bytes, g.m.count() - w.m0, Traits::kTileM);
    CopiesA::enter(c.a, source.data_a(segment, w.group), access.a.bytes, g.m, s.a.row, w.m0, s.k, s.a.col, k, flat,
                   shared.a.rows[table]);
  }
  if (source.copies_b(turn)) {
    c.how_b = how(access.b.bytes, g.n.count() - w.n0, Traits::kTileN);
    CopiesB::enter(c.b, source.data_b(segment, w.group), access.b.bytes, g.n, s.b.col, w.n0, s.k, s.b.row, k, flat,
                   shared.b.rows[table]);
  }
  if (g.gate.saved.data) {
    Place<typename Traits::T> saved;
    const Matrix& of = g.gate.saved;
    if (g.gate_on_a())
      CopiesA::enter(saved, source.data_saved(w.group), access.a.bytes, g.m, of.row, w.m0, s.k, of.col, k, flat,
                     Source::Shared::gated().saved_a.rows[table]);
    else
      CopiesB::enter(saved, source.data_saved(w.group), access.b.bytes, g.n, of.col, w.n0, s.k, of.row, k, flat,
                     Source::Shared::gated().saved_b.rows[table]);
    c.beside = saved.at;
  }
  if (g.gate.mask.words)
    c.beside = g.gate_on_a() ? mask_row<typename Traits::TileA>(g.gate.mask, w.m0, g.m.count())
                             : mask_row<typename Traits::TileB>(g.gate.mask, w.n0, g.n.count());
  return c;
}

// Starts the copies of what is read beside dY: of the saved tensor or of its mask.
template <class Traits>
PW_CALLED void start_beside(const Gemm& g, const GemmLaunch& launch, Cursor<typename Traits::T> c, int table,
                            int stage) {
  using Source = MmaSource<Traits>;
  using Shared = typename Source::Shared;
  using T = typename Traits::T;
  const Source source{g, launch};
  const int64_t k = source.first_k(c);
  const int values = source.values(c);
  if (g.gate.mask.words) {
    const auto* row = static_cast<const uint32_t*>(c.beside);
    uint32_t* const words = Shared::masked().mask[stage];
    if (g.gate_on_a())
      start_mask<typename Traits::TileA>(g.gate.mask, row, k, values, words);
    else
      start_mask<typename Traits::TileB>(g.gate.mask, row, k, values, words);
    return;
  }
  const auto start = [&](auto& operand, const Place<T>& dy, int bytes, const Steps& k_steps) {
    copy_called<Traits::kThreads>(bytes, Place<T>{static_cast<const T*>(c.beside), dy.bytes}, operand.rows[table],
                                  g.segment[c.segment].k, k_steps, k, values, source.flat(), operand.stage[stage]);
  };
  if (g.gate_on_a())
    start(Shared::gated().saved_a, c.a, launch.plan.access.a.bytes, g.gate.saved.col);
  else
    start(Shared::gated().saved_b, c.b, launch.plan.access.b.bytes, g.gate.saved.row);
}

// Goes one step further where k has several dimensions and the innermost one ends.
template <class Traits>
PW_CALLED Cursor<typename Traits::T> seek(const Gemm& g, const GemmLaunch& launch, int turn,
                                          Cursor<typename Traits::T> c) {
  using Source = MmaSource<Traits>;
  using CopiesA = typename Source::CopiesA;
  using CopiesB = typename Source::CopiesB;
  const Source source{g, launch};
  const int group = find_work(g, launch.plan, block_index() + turn * grid_size()).group;
  const Segment& s = g.segment[c.segment];
  const Access& access = launch.plan.access;
  const int64_t k = source.first_k(c);
  c.left_inner = source.left_inner(c.segment, k);
  CopiesA::seek(c.a.at, source.data_a(c.segment, group), access.a.bytes, s.k, s.a.col, k);
  CopiesB::seek(c.b.at, source.data_b(c.segment, group), access.b.bytes, s.k, s.b.row, k);
  if (!g.gate.saved.data) return c;
  auto at = static_cast<const typename Traits::T*>(c.beside);
  if (g.gate_on_a())
    CopiesA::seek(at, source.data_saved(group), access.a.bytes, s.k, g.gate.saved.col, k);
  else
    CopiesB::seek(at, source.data_saved(group), access.b.bytes, s.k, g.gate.saved.row, k);
  c.beside = at;
  return c;
}

template <class Traits>
struct MmaStream {
  using T = typename Traits::T;
  using Source = MmaSource<Traits>;
  using Shared = typename Source::Shared;
  using CopiesA = typename Source::CopiesA;
  using CopiesB = typename Source::CopiesB;

  const Source source;
  const MmaTiles<Traits>& tiles;
  int turn = 0;  // of the block's tiles
  int table = 0;
  Cursor<T> c;

  PW_DEVICE MmaStream(const Gemm& g, const GemmLaunch& launch, const MmaTiles<Traits>& tiles)
      : source{g, launch}, tiles(tiles) {
    if (launch.plan.steps && block_index() < launch.plan.work()) c = enter<Traits>(g, launch, 0, 0, 0, 0);
  }

  // Starts the copies of the next step, if there is one. Ends with the tables of the step after it being filled, for
  // all to see after the next barrier.
  PW_DEVICE void next(int stage) {
    if (c.left > 0) {
      start(stage);
      advance();
    }
    copy_async_commit();
  }

  template <class Of, class Tile>
  PW_DEVICE void start_operand(How how, int bytes, const Place<T>& p, const typename Of::Table& rows,
                               const Steps& k_steps, Tile& to) const {
    if (how == How::whole && (c.left_segment > 1 || source.values(c) == Source::kDepth))
      Of::copy_whole(p, rows, k_steps, to);
    else if (how != How::not_at_all)
      copy_called<Traits::kThreads>(bytes, p, rows, source.g.segment[c.segment].k, k_steps, source.first_k(c),
                                    source.values(c), source.flat(), to);
  }

  PW_DEVICE void start(int stage) const {
    const Gemm& g = source.g;
    const GemmPlan& plan = source.launch.plan;
    const Segment& s = g.segment[c.segment];
    auto& shared = Shared::plain();
    const int step = int(plan.steps) - c.left;  // where W stays
    start_operand<CopiesA>(c.how_a, plan.access.a.bytes, c.a, shared.a.rows[table], s.a.col,
                           tiles.a(stage, step));
    start_operand<CopiesB>(c.how_b, plan.access.b.bytes, c.b, shared.b.rows[table], s.b.row,
                           tiles.b(stage, step));
    if (g.gate.present()) start_beside<Traits>(g, source.launch, c, table, stage);
  }

  PW_DEVICE void advance() {
    const Gemm& g = source.g;
    const Segment& s = g.segment[c.segment];
    const bool ends = --c.left == 0;
    if (ends) ++turn;
    if (ends || --c.left_segment == 0) {
      table ^= 1;
      if (block_index() + turn * grid_size() < source.launch.plan.work())
        c = enter<Traits>(g, source.launch, turn, table, c.left, c.segment);
      return;
    }
    CopiesA::advance(c.a.at, s.a.col, source.flat());
    CopiesB::advance(c.b.at, s.b.row, source.flat());
    if (g.gate.saved.data) {
      const T* at = static_cast<const T*>(c.beside);
      if (g.gate_on_a())
        CopiesA::advance(at, g.gate.saved.col, source.flat());
      else
        CopiesB::advance(at, g.gate.saved.row, source.flat());
      c.beside = at;
    }
    if (source.flat()) return;
    const bool near = c.left_inner >= 2 * Source::kDepth;  // all of both steps lies along the innermost dimension
    c.left_inner -= Source::kDepth;
    if (!near) c = seek<Traits>(g, source.launch, turn, c);
  }
};

}  // namespace pw
