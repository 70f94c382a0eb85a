// What happens to a tile that its registers cannot finish: any activation, z beside y, strides of any kind.
#pragma once
#include "offsets.h"

namespace pw::PW_ISA {

// A tile's place in a matrix of the result's storage type.
template <class T>
struct Block {
  T* data = nullptr;
  T* first = nullptr;  // of row 0 and column 0
  Rows row;
  Columns column;

  void prepare(const Matrix& matrix, const Axis& m) {
    data = static_cast<T*>(matrix.data);
    if (data) row.prepare(m, matrix.row, 1);
  }
  void seek_columns(const Matrix& matrix, const Axis& n, int64_t begin, int count) {
    if (data) column.seek(n, matrix.col, begin, count);
  }
  void seek_rows(int64_t begin, int count) {
    if (data) first = data + column.start + row.seek(begin, count);
  }
  bool unit() const { return !data || column.unit; }
  PW_INLINE Vec<acc_t<T>> read(int r, int c, int n) const {
    if (column.unit) return load(first + row[r] + c, n);
    T lanes[Vec<acc_t<T>>::size];
    for (int i = 0; i < n; ++i) lanes[i] = first[row[r] + column.table[c + i]];
    return load<T>(lanes, n);
  }
  PW_INLINE void write(int r, int c, Vec<acc_t<T>> v, int n) const {
    if (column.unit) return store(first + row[r] + c, v, n);
    T lanes[Vec<acc_t<T>>::size];
    store<T>(lanes, v, n);
    for (int i = 0; i < n; ++i) first[row[r] + column.table[c + i]] = lanes[i];
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
