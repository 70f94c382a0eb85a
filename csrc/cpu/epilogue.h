// What happens to a tile that its registers cannot finish: any activation, z beside y, strides of any kind.
#pragma once
#include "tile.h"

namespace pw::PW_ISA {

// Offsets of `count` consecutive positions of an axis. Returns whether they are consecutive elements.
inline bool fill_offsets(const Axis& axis, const Steps& steps, int64_t begin, int count, int64_t* offsets) {
  const int64_t inner = axis.size[kRank - 1], step = steps.step[kRank - 1];
  if (begin + count <= inner && axis.size[0] * axis.size[1] * axis.size[2] == 1) {  // no division for channels
    for (int i = 0; i < count; ++i) offsets[i] = (begin + i) * step;
    return step == 1 || count == 1;
  }
  bool unit = true;
  for (int i = 0; i < count;) {  // run by run of the innermost dimension
    const int64_t at = (begin + i) % inner, base = offset(axis, steps, begin + i);
    const int64_t length = std::min<int64_t>(count - i, inner - at);
    for (int64_t j = 0; j < length; ++j) offsets[i + j] = base + j * step;
    unit = unit && (i == 0 || base == offsets[i - 1] + 1) && (length == 1 || step == 1);
    i += int(length);
  }
  return unit;
}

// A tile's place in a matrix of the result's storage type.
template <class T>
struct Block {
  T* data = nullptr;
  T* first = nullptr;  // of column 0
  int64_t row[kMostRows], column[kMostLanes];
  bool unit = true;  // columns are consecutive elements

  void set_columns(const Matrix& matrix, const Axis& n, int64_t n0, int columns) {
    data = static_cast<T*>(matrix.data);
    if (!data) return;
    unit = fill_offsets(n, matrix.col, n0, columns, column);
    first = data + column[0];
    for (int i = columns - 1; i >= 0; --i) column[i] -= column[0];
  }
  void set_rows(const Matrix& matrix, const Axis& m, int64_t m0, int rows) {
    if (data) fill_offsets(m, matrix.row, m0, rows, row);
  }
  PW_INLINE Vec<acc_t<T>> read(int r, int c, int n) const {
    if (unit) return load(first + row[r] + c, n);
    T lanes[Vec<acc_t<T>>::size];
    for (int i = 0; i < n; ++i) lanes[i] = first[row[r] + column[c + i]];
    return load<T>(lanes, n);
  }
  PW_INLINE void write(int r, int c, Vec<acc_t<T>> v, int n) const {
    if (unit) return store(first + row[r] + c, v, n);
    T lanes[Vec<acc_t<T>>::size];
    store<T>(lanes, v, n);
    for (int i = 0; i < n; ++i) first[row[r] + column[c + i]] = lanes[i];
  }
};

// y = activation(sums + residual), z = sums + residual
template <class T>
void finish(const acc_t<T>* sums, int64_t ld, int rows, int columns, const Block<T>& y, const Block<T>& z,
            const Block<T>& residual, const Activation& activation) {
  constexpr int L = Vec<acc_t<T>>::size;
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; c += L) {
      const int n = std::min(L, columns - c);
      Vec<acc_t<T>> v = load(sums + r * ld + c, n);
      if (residual.data) v = v + residual.read(r, c, n);
      if (z.data) z.write(r, c, v, n);
      y.write(r, c, activate(activation, v), n);
    }
}

// Whether the activation is a clamp to [low, high], which a tile applies in registers.
template <class Acc>
bool as_clamp(const Activation& a, Acc& low, Acc& high) {
  low = -std::numeric_limits<Acc>::infinity(), high = std::numeric_limits<Acc>::infinity();
  switch (a.kind) {
    case Act::none:
      return true;
    case Act::relu6:
      high = 6;
      [[fallthrough]];
    case Act::relu:
      low = 0;
      return true;
    case Act::clamp:
      low = Acc(a.alpha), high = Acc(a.beta);
      return true;
    default:
      return false;
  }
}

}  // namespace pw::PW_ISA
