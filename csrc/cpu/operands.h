// The operands of a product as strips for the microkernel: read in place where it can, packed otherwise.
#pragma once
#include "epilogue.h"
#include "kernels.h"
#include "pack.h"
#include "scratch.h"
#include "stretch.h"

namespace pw::PW_ISA {

using cpu::Plan;
using cpu::Range;

constexpr int64_t kCrowded = 1024;  // bytes: lines a multiple of this apart share a few sets of the first-level cache
constexpr int64_t kNearBytes = 32 << 10;  // of B that the first-level cache holds from one block of rows to the next
constexpr int64_t kHalfPage = 2 << 10;  // lines a multiple of this apart share two sets of it, and few of the second's

template <class T, class D>
class Operands {
  using Elem = typename D::Elem;
  using Acc = typename D::Acc;
  static constexpr bool kSame = std::is_same_v<T, Elem>;    // operands may be read in place
  static constexpr bool kWidens = !kSame && D::kPack == 1;  // or widened, row by row where k is consecutive
  static constexpr bool kInChunks = D::kChunk > 1;          // or packed row by row for tile registers

 public:
  Operands(const Plan& plan, int slot) : plan_(plan), slot_(slot) {}

  int stretches() const { return stretches_; }
  int64_t values() const { return values_; }  // of k in all stretches, and elements
  int64_t depth() const { return depth_; }
  const Elem* const (*dot_columns() const)[cpu::kMostDots] { return dot_b_; }

  // Moves on to the next stretches.
  void take(const Gemm& g, int& segment, int64_t& position, int64_t longest, int64_t most) {
    stretches_ = next_stretches(g, segment, position, longest, most, stretch_);
    values_ = 0;
    int64_t run = 0;
    for (int i = 0; i < stretches_; ++i) {
      values_ += stretch_[i].k, run += stretch_[i].k;
      ends_sum_[i] = i + 1 < stretches_ && run + stretch_[i + 1].k > kLongestSum;
      if (ends_sum_[i]) run = 0;
    }
  }

  // What was packed of an operand serves until its part changes.
  void forget_a() { std::fill(a_ready_.begin(), a_ready_.end(), false); }
  void forget_b() { std::fill(b_ready_.begin(), b_ready_.end(), false); }
  void trim() { a_scratch().trim(), b_scratch().trim(), dot_scratch().trim(); }

  // Which operands the tiles may read in place.
  void choose(const Gemm& g, Range blocks) {
    depth_ = 0;
    while (plan_.rows << (together_log2_ + 1) <= kPackedTogether) ++together_log2_;
    a_direct_ = kSame || (D::kPack == 2 && (!kInChunks || is_flat(g.m) || plan_.within_runs));
    // Packed for several blocks: rows a multiple of 2 KB apart, which push each other out of the caches (512 -> 512 at
    // 64x64 takes half the time), and for shorter vectors all but images' pixels that stay in the first one.
    const int64_t panel_bytes = values_ * plan_.columns(0).size() * int64_t(sizeof(T));
    const bool near = kBytes == 64 || (g.pixels == Pixels::on_n && panel_bytes <= kNearBytes);
    b_direct_ = kSame && (blocks.size() < kManyBlocks || (near && !crowded(g)));
    for (int i = 0; i < stretches_; ++i) {
      const int64_t a_step = g.segment[stretch_[i].segment].a.col.step[kRank - 1], k = stretch_[i].k;
      depth_ += packed_steps<D>(k);
      if (D::kPack == 2)  // a pair is one element: its two k must be neighbours, and none may be left over
        a_direct_ = a_direct_ && a_step == 1 && k % 2 == 0;
      else if (a_step != 1 && values_ > 64 && (!plan_.at_once || a_step * int64_t(sizeof(T)) % kCrowded == 0) &&
               plan_.panels > (a_step * int64_t(sizeof(T)) % kCrowded ? 2 : 1))
        a_direct_ = false;  // every k would touch a line of its own, again for each block of rows
    }
    if (cpu::forced.packed == 1) a_direct_ = b_direct_ = false;
    a_in_rows_ = kWidens && cpu::forced.packed != 1;
    for (int i = 0; i < stretches_; ++i)
      a_in_rows_ = a_in_rows_ && g.segment[stretch_[i].segment].a.col.step[kRank - 1] == 1;
    if (kInChunks) a_in_rows_ = !a_direct_;
    // Short rows from far away, where reading them bounds the product: the prefetchers, which see as many at a time as
    // a tile has rows, come too late (144 -> 24 and 256 -> 64 at 56x56 1.2 times as fast). Rows of
    // one or two lines they follow by themselves: fetching those takes 1.1 times as long (32 -> 16 at 112x112).
    const int64_t row_bytes = values_ * int64_t(sizeof(T));
    a_far_ = kInChunks ||
             (a_direct_ && g.pixels == Pixels::on_m && g.n.count() <= values_ && row_bytes > 2 * cpu::kLineBytes &&
              row_bytes <= kShortRow && g.m.count() * row_bytes > kFarBytes && g.segment[0].a.col.step[kRank - 1] == 1);
    if (a_in_rows_) {
      a_pitch_ = cpu::ceil_div(depth_, kApart) * kApart;
      if (a_pitch_ * int64_t(sizeof(Elem)) % kCrowded == 0) a_pitch_ += kApart;
      for (int r = 0; r < kBlockRows; ++r) packed_rows_[r] = r * a_pitch_ * int64_t(sizeof(Elem));
    }
    for (int i = 0; i < stretches_; ++i)
      a_rows_[i].prepare(g.m, g.segment[stretch_[i].segment].a.row, a_direct_ ? int64_t(sizeof(T)) : 1);
  }

  // The end of the blocks from `block` on whose rows lie as those of the one before.
  int64_t end_of_tiles(int64_t block, Range blocks) const {
    if (!a_direct_) {
      if (kInChunks) return block + 1;
      const int64_t group = (block - blocks.begin) >> together_log2_;
      return std::min(blocks.end, blocks.begin + ((group + 1) << together_log2_));
    }
    bool flat = true;
    for (int i = 0; i < stretches_; ++i) flat = flat && a_rows_[i].flat();
    return flat ? blocks.end : block + 1;
  }

  // dW in channels_last: what is packed of a chunk, pixel by pixel. A few channels of one pixel after another are lines
  // that no prefetcher foresees.
  void pack_pixels(const Gemm& g, Range blocks, Range panels) {
    for (int i = 0; i < stretches_; ++i) {
      const Segment& s = g.segment[stretch_[i].segment];
      if (s.a.row.step[kRank - 1] != 1 || s.b.col.step[kRank - 1] != 1) return;
    }
    const Groups groups = groups_of(blocks);
    if (!a_direct_ && !a_in_rows_ && !all_ready(a_ready_, groups.count)) {
      Elem* dst = a_scratch().get(groups.count * groups.size);
      pieces_.clear();
      for (int64_t i = 0; i < groups.count; ++i, dst += groups.size) {
        const Range rows = rows_of_group(blocks, i);
        pieces_.push_back({rows.begin, int(rows.size()), int(rows.size()), dst});
      }
      for (int i = 0; i < stretches_; ++i) {
        const Matrix& a = g.segment[stretch_[i].segment].a;
        const T* p = static_cast<const T*>(a.data) + stretch_[i].a_offset;
        pack_pieces<T, D>(p, stretch_[i].k, a.col.step[kRank - 1], pieces_);
      }
      a_ready_.assign(groups.count, true);
    }
    if (!b_direct_ && !all_ready(b_ready_, panels.size())) {
      Elem* dst = b_scratch().get(panels.size() * panel_size());
      pieces_.clear();
      for (int64_t panel = panels.begin; panel < panels.end; ++panel, dst += panel_size()) {
        const Range columns = plan_.columns(panel);
        pieces_.push_back({columns.begin, int(columns.size()), int(whole_vectors(columns.size())), dst});
      }
      for (int i = 0; i < stretches_; ++i) {
        const Matrix& b = g.segment[stretch_[i].segment].b;
        const T* p = static_cast<const T*>(b.data) + stretch_[i].b_offset;
        pack_pieces<T, D>(p, stretch_[i].k, b.row.step[kRank - 1], pieces_);
      }
      b_ready_.assign(panels.size(), true);
    }
  }

  // Rows are packed for several blocks at once: the 6 of one would leave most of a vector idle.
  void a_strips(const Gemm& g, int64_t block, Range blocks, Strip<Elem>* strips) {
    const Range rows = plan_.rows_of(block);
    const int64_t group = (block - blocks.begin) >> together_log2_;
    Range packed = rows;
    Elem* dst = nullptr;
    if (!a_direct_) {
      const Groups groups = groups_of(blocks);
      packed = rows_of_group(blocks, group);
      if (int64_t(a_ready_.size()) != groups.count) a_ready_.assign(groups.count, false);
      dst = a_scratch().get(groups.count * groups.size) + group * groups.size;
    }
    const int width = int(packed.size());
    for (int64_t i = 0, at = 0; i < stretches_; at += packed_steps<D>(stretch_[i++].k)) {
      const Matrix& a = g.segment[stretch_[i].segment].a;
      const T* p = static_cast<const T*>(a.data) + stretch_[i].a_offset;
      const int64_t k_step = a.col.step[kRank - 1], steps = packed_steps<D>(stretch_[i].k);
      strips[i].k = steps, strips[i].ends_sum = ends_sum_[i];
      if (a_direct_) {
        strips[i].k = cpu::ceil_div(stretch_[i].k, D::kPack);
        const char* start = reinterpret_cast<const char*>(p) + a_rows_[i].seek(rows.begin, width);
        strips[i].a = reinterpret_cast<const Elem*>(start);
        strips[i].a_row = a_rows_[i].table(), strips[i].a_step = D::kPack == 2 ? 1 : k_step;
        strips[i].a_next = a_rows_[i].step() * rows.size();
        if (a_far_) strips[i].a_ahead = a_rows_[i].distance(rows.begin, rows.end);
        continue;
      }
      if constexpr (kWidens || kInChunks)
        if (a_in_rows_) {
          if (!a_ready_[group]) {
            const int64_t start = a_rows_[i].seek(packed.begin, width);
            if constexpr (kInChunks)
              pack_rows<T, D>(p + start, a_rows_[i].table(), width, stretch_[i].k, k_step, dst + at, a_pitch_);
            else
              widen_rows(p + start, a_rows_[i].table(), width, stretch_[i].k, dst + at, a_pitch_);
          }
          strips[i].a = dst + (rows.begin - packed.begin) * a_pitch_ + at, strips[i].a_row = packed_rows_;
          strips[i].a_step = 1, strips[i].a_ahead = 0;
          strips[i].a_next = rows.size() * a_pitch_ * int64_t(sizeof(Elem));
          continue;
        }
      if (!a_ready_[group]) {
        const int64_t start = a_rows_[i].seek(packed.begin, width);
        pack<T, D>(p + start, a_rows_[i].table(), width, stretch_[i].k, k_step, dst, width);
      }
      strips[i].a = dst + (rows.begin - packed.begin), strips[i].a_row = kPackedRows.table, strips[i].a_step = width,
      strips[i].a_next = rows.size() * int64_t(sizeof(Elem)), strips[i].a_ahead = 0;
      dst += steps * width;
    }
    if (dst) a_ready_[group] = true;
  }

  void b_strips(const Gemm& g, Range columns, int64_t slot, int64_t slots, Strip<Elem>* strips) {
    constexpr int L = Vec<Acc>::size;
    const int n = int(columns.size());
    if (n == 0) return;
    const int64_t ld = whole_vectors(n);
    Elem* dst = nullptr;
    for (int i = 0; i < stretches_; ++i) {
      const Matrix& b = g.segment[stretch_[i].segment].b;
      const T* p = static_cast<const T*>(b.data) + stretch_[i].b_offset;
      const int64_t k_step = b.row.step[kRank - 1], steps = packed_steps<D>(stretch_[i].k);
      Columns place;
      place.seek(g.n, b.col, columns.begin, n);
      if (b_direct_ && place.unit && (kBytes == 64 || n % L == 0)) {
        strips[i].b = reinterpret_cast<const Elem*>(p + place.start);
        strips[i].b_step = k_step;
        strips[i].b_ahead = rows_ahead(g, n, k_step) * k_step;
        continue;
      }
      if (!dst) {
        if (int64_t(b_ready_.size()) != slots) b_ready_.assign(slots, false);
        dst = b_scratch().get(slots * panel_size()) + slot * panel_size();
      }
      if (!b_ready_[slot]) {
        pack<T, D>(p + place.start, place.counted(n), n, stretch_[i].k, k_step, dst, ld);
        fill_chunk<D>(dst + cpu::ceil_div(stretch_[i].k, D::kPack) * ld, stretch_[i].k, ld);
      }
      strips[i].b = dst, strips[i].b_step = ld, strips[i].b_ahead = 0;
      dst += steps * ld;
    }
    if (dst) b_ready_[slot] = true;
  }

  // Strips of `count` panels of equal width from `panel` on: those of the first, and how far the others lie from them.
  // Whether they lie evenly.
  bool b_strips_beside(const Gemm& g, int64_t panel, int64_t count, Range panels, Strip<Elem>* strips) {
    for (int64_t i = 0; i < count; ++i) {
      Strip<Elem> other[kStrips], *some = i == 0 ? strips : other;
      b_strips(g, plan_.columns(panel + i), panel + i - panels.begin, panels.size(), some);
      for (int s = 0; s < stretches_; ++s) {
        if (i <= 1) strips[s].b_next = some[s].b - strips[s].b;
        if (some[s].b != strips[s].b + i * strips[s].b_next || some[s].b_step != strips[s].b_step) return false;
      }
    }
    return true;
  }

  // Columns that are summed up along k: read in place where k has unit step, else copied.
  void seek_dots(const Gemm& g, int64_t begin, int count) {
    T* dst = nullptr;
    for (int i = 0; i < stretches_; ++i) {
      const Matrix& b = g.segment[stretch_[i].segment].b;
      const int64_t k_step = b.row.step[kRank - 1], k = stretch_[i].k;
      for (int c = 0; c < count; ++c) {
        const T* p = static_cast<const T*>(b.data) + stretch_[i].b_offset + offset(g.n, b.col, begin + c);
        if (k_step != 1) {
          if (!dst) dst = reinterpret_cast<T*>(dot_scratch().get(count * depth_));
          for (int64_t j = 0; j < k; ++j) dst[j] = p[j * k_step];
          p = dst, dst += k;
        }
        dot_b_[i][c] = reinterpret_cast<const Elem*>(p);
      }
    }
  }

 private:
  // Blocks whose rows are packed together: how many groups, and the elements of one.
  struct Groups {
    int64_t count, size;
  };
  Groups groups_of(Range blocks) const {
    const int64_t together = int64_t(1) << together_log2_;
    return {cpu::ceil_div(blocks.size(), together), (a_in_rows_ ? a_pitch_ : depth_) * together * plan_.rows + kApart};
  }
  Range rows_of_group(Range blocks, int64_t group) const {
    const int64_t first = blocks.begin + (group << together_log2_);
    return {plan_.rows_of(first).begin,
            plan_.rows_of(std::min(first + (int64_t(1) << together_log2_), blocks.end) - 1).end};
  }

  bool crowded(const Gemm& g) const {
    for (int i = 0; i < stretches_; ++i) {
      const int64_t bytes = g.segment[stretch_[i].segment].b.row.step[kRank - 1] * int64_t(sizeof(T));
      if (bytes % kHalfPage == 0 && stretch_[i].k > kFewRows) return true;
    }
    return false;
  }

  // Of B in place, read for a panel of n columns: how many rows ahead are fetched.
  int rows_ahead(const Gemm& g, int n, int64_t k_step) const {
    const int64_t column_bytes = values_ * int64_t(sizeof(T));
    if (!kFetchesB || n * column_bytes <= kNearBytes) return 0;
    const bool far = g.n.count() * column_bytes > kFarColumns && k_step * int64_t(sizeof(T)) >= kHalfPage;
    return far && values_ >= kLongColumn ? kRowsFarAhead : kRowsAhead;
  }

  static bool all_ready(const std::vector<bool>& ready, int64_t count) {
    return int64_t(ready.size()) == count && std::find(ready.begin(), ready.end(), false) == ready.end();
  }
  static constexpr int64_t kManyBlocks = 4, kFewRows = 64, kShortRow = 2048, kFarBytes = 2 << 20;
  static constexpr int64_t kApart = 64 / sizeof(Elem);  // a line, so that pieces written in turn share no cache set
  static int64_t whole_vectors(int64_t n) { return cpu::ceil_div(n, Vec<Acc>::size) * Vec<Acc>::size; }
  int64_t panel_size() const { return depth_ * Vec<Acc>::size * kVectors + kApart; }

  Scratch<Elem>& scratch(int which) const {
    static thread_local Scratch<Elem> scratch[2 * kSources][3];
    return scratch[slot_][which];
  }
  Scratch<Elem>& a_scratch() const { return scratch(0); }
  Scratch<Elem>& b_scratch() const { return scratch(1); }
  Scratch<Elem>& dot_scratch() const { return scratch(2); }

  // Rows of a packed operand lie next to each other.
  struct PackedRows {
    int64_t table[kBlockRows];
    constexpr PackedRows() : table() {
      for (int r = 0; r < kBlockRows; ++r) table[r] = r * int64_t(sizeof(Elem));
    }
  };
  static constexpr PackedRows kPackedRows{};

  const Plan& plan_;
  const int slot_;
  bool a_direct_ = false, b_direct_ = false, a_in_rows_ = false, a_far_ = false;
  int64_t values_ = 0, depth_ = 0;                 // of k, and elements they make, in all stretches
  int stretches_ = 0, together_log2_ = 0;          // blocks packed together, as a power of two
  int64_t a_pitch_ = 0, packed_rows_[kBlockRows];  // elements from one packed row to the next, and bytes to each
  Stretch stretch_[kStrips];
  bool ends_sum_[kStrips];
  Rows a_rows_[kStrips];
  const Elem* dot_b_[kStrips][cpu::kMostDots];
  std::vector<Piece<Elem>> pieces_;
  std::vector<bool> a_ready_, b_ready_;  // packed operands of the current range, by block and panel
};

}  // namespace pw::PW_ISA
