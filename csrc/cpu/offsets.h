// Where a tile's rows and columns lie in memory.
#pragma once
#include "tile.h"

namespace pw::PW_ISA {

inline bool is_flat(const Axis& axis) { return axis.size[0] * axis.size[1] * axis.size[2] == 1; }

// Offsets of `count` consecutive positions of an axis.
inline void fill_offsets(const Axis& axis, const Steps& steps, int64_t begin, int count, int64_t scale,
                         int64_t* offsets) {
  const int64_t inner = axis.size[kRank - 1], step = steps.step[kRank - 1] * scale;
  for (int i = 0; i < count;) {  // run by run of the innermost dimension
    const int64_t length = std::min<int64_t>(count - i, inner - (begin + i) % inner);
    const int64_t base = offset(axis, steps, begin + i) * scale;
    for (int64_t j = 0; j < length; ++j) offsets[i + j] = base + j * step;
    i += int(length);
  }
}

// Rows: one start and a table relative to it. Without nested dimensions the table is the same for every tile.
class Rows {
 public:
  void prepare(const Axis& axis, const Steps& steps, int64_t scale) {
    axis_ = &axis, steps_ = &steps, scale_ = scale, flat_ = is_flat(axis), step_ = steps.step[kRank - 1] * scale;
    if (flat_)
      for (int r = 0; r < kPackedTogether; ++r) table_[r] = r * step_;
  }
  // Moves to `count` rows from `begin` on; returns the start.
  int64_t seek(int64_t begin, int count) {
    if (flat_) return begin * step_;
    fill_offsets(*axis_, *steps_, begin, count, scale_, table_);
    return 0;
  }
  // From one position to another, zero beyond the last.
  int64_t distance(int64_t from, int64_t to) const {
    if (flat_) return (to - from) * step_;
    return to < axis_->count() ? (offset(*axis_, *steps_, to) - offset(*axis_, *steps_, from)) * scale_ : 0;
  }
  bool unit() const { return flat_ && step_ == scale_; }  // consecutive elements
  bool flat() const { return flat_; }
  int64_t step() const { return step_; }  // between neighbouring rows, where flat
  const int64_t* table() const { return table_; }
  int64_t operator[](int r) const { return table_[r]; }

 private:
  const Axis* axis_ = nullptr;
  const Steps* steps_ = nullptr;
  int64_t scale_ = 1, step_ = 0, table_[kPackedTogether];
  bool flat_ = true;
};

// Columns: one start, and a table relative to it unless they are consecutive elements.
struct Columns {
  int64_t start = 0, table[kMostLanes + cpu::kMostDots];
  bool unit = true;

  void seek(const Axis& axis, const Steps& steps, int64_t begin, int count) {
    start = offset(axis, steps, begin);
    unit = count == 1 || (steps.step[kRank - 1] == 1 && begin % axis.size[kRank - 1] + count <= axis.size[kRank - 1]);
    if (unit) return;
    fill_offsets(axis, steps, begin, count, 1, table);
    unit = true;
    for (int i = count - 1; i >= 0; --i) table[i] -= start, unit = unit && table[i] == i;
  }
  // The table, for those who need it even of consecutive elements.
  const int64_t* counted(int count) {
    if (unit)
      for (int i = 0; i < count; ++i) table[i] = i;
    return table;
  }
};

}  // namespace pw::PW_ISA
