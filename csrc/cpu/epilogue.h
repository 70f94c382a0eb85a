// What happens to a tile that its registers cannot finish: columns that are not consecutive elements, rows that are, or
// another type than its operands'.
#pragma once
#include "offsets.h"

namespace pw::PW_ISA {

// What the lanes of a vector are that has a few columns of a few rows: column c of row r is lane c * apart + r.
struct Lanes {
  int row, rows, column, columns, apart;

  template <class T, class F>
  PW_INLINE Vec<acc_t<T>> gather(F&& of) const {
    T lanes[Vec<acc_t<T>>::size] = {};
    for (int c = 0; c < columns; ++c)
      for (int r = 0; r < rows; ++r) lanes[c * apart + r] = of(r, c);
    return load(lanes, Vec<acc_t<T>>::size);
  }
};

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
  // Whether `count` rows start at multiples of a cache line.
  bool on_lines(int count) const {
    uintptr_t bits = reinterpret_cast<uintptr_t>(first);
    for (int r = 0; r < count; ++r) bits |= uintptr_t(row[r]) * sizeof(T);
    return bits % 64 == 0;
  }
  bool unit() const { return !data || column.unit; }
  // Whether any rows lie as the next ones do.
  bool regular() const { return !data || row.flat(); }
  // Whether the rows are consecutive elements, as in channels_last seen from the other side.
  bool upright() const { return !data || row.unit(); }

  PW_INLINE Vec<acc_t<T>> read(int r, int c, int n) const {
    if (column.unit) return load(first + row[r] + c, n);
    T lanes[Vec<acc_t<T>>::size];
    for (int i = 0; i < n; ++i) lanes[i] = first[row[r] + column.table[c + i]];
    return load<T>(lanes, n);
  }
  template <class D>
  PW_INLINE void write(int r, int c, Vec<acc_t<T>> v, int n) const {
    if (column.unit) return round_store<D>(first + row[r] + c, v, n);
    T lanes[Vec<acc_t<T>>::size];
    round_store<D>(lanes, v, n);
    for (int i = 0; i < n; ++i) first[row[r] + column.table[c + i]] = lanes[i];
  }
  // Lanes of the columns from column n on; the rows are those that were sought.
  PW_INLINE Vec<acc_t<T>> gather(int n, const Lanes& at) const {
    return at.gather<T>([&](int r, int c) { return at_column(n + at.column + c)[row[r]]; });
  }
  template <class D>
  PW_INLINE void scatter(int n, Vec<acc_t<T>> v, const Lanes& at) const {
    T lanes[Vec<acc_t<T>>::size];
    round_store<D>(lanes, v, Vec<acc_t<T>>::size);
    for (int c = 0; c < at.columns; ++c)
      for (int r = 0; r < at.rows; ++r) at_column(n + at.column + c)[row[r]] = lanes[c * at.apart + r];
  }
  // How far column c lies from where it would be if columns were consecutive elements.
  int64_t shift(int c) const { return !data || column.unit ? 0 : column.table[c] - c; }
  T* at_column(int c) const { return first + (column.unit ? c : column.table[c]); }
};

// The result of a tile, finished in memory: y = activation(sums + residual), z = sums + residual.
template <class T, class D>
struct Finish {
  using V = Vec<acc_t<T>>;
  static constexpr int L = V::size, kLine = std::max<int>(1, 64 / (L * sizeof(T)));  // vectors of y in a line
  const acc_t<T>* sums;  // rows of `ld`, readable to the end of the last column's vector
  int64_t ld;
  int rows;
  const Block<T>&y, &z, &residual;
  const Activation& activation;
  bool streamed = false;  // y is too large for the caches; its rows start at multiples of a line

  // Columns [begin, end), row by row: all at once where they are consecutive elements, image by image where those are
  // long enough.
  void run(int begin, int end) const {
    if (y.unit() && z.unit() && residual.unit()) return run_rows(begin, end);
    constexpr int kLeast = L / 4;
    for (int from = begin, to = from; from < end; from = to) {
      const int64_t shifts[] = {y.shift(from), z.shift(from), residual.shift(from)};
      const auto follows = [&](int c) {
        return y.shift(c) == shifts[0] && z.shift(c) == shifts[1] && residual.shift(c) == shifts[2];
      };
      while (to < end && follows(to)) ++to;
      if (to - from >= kLeast) {
        run_rows(from, to);
      } else {
        to = std::min(end, from + L);
        run_scattered(from, to);
      }
    }
  }

  void run_rows(int begin, int end) const {
    with_activation(activation, [this, begin, end](auto of) {
      for (int r = 0; r < rows; ++r) run_row(of, r, begin, end);
    });
  }

  // One row of consecutive elements. What the stores might change is read before.
  template <class F>
  PW_INLINE void run_row(F of, int r, int begin, int end) const {
    const acc_t<T>* const from = sums + r * ld;
    T* const to = y.first + y.row[r] + y.shift(begin);
    T* const to_z = z.data ? z.first + z.row[r] + z.shift(begin) : nullptr;
    const T* const add = residual.data ? residual.first + residual.row[r] + residual.shift(begin) : nullptr;
    const bool past = streamed;
    const auto result = [=](int c, int n) {
      V v = load(from + c, n);
      if (add) v = v + load(add + c, n);
      if (to_z) round_store<D>(to_z + c, v, n);
      return of(v);
    };
    int c = begin;
    if constexpr (std::is_same_v<T, typename D::Store>)
      for (; c + kLine * L <= end; c += kLine * L) {
        V line[kLine];
#pragma GCC unroll 4
        for (int i = 0; i < kLine; ++i) line[i] = result(c + i * L, L);
        D::template store_row<kLine>(to + c, line, L, past);
      }
    for (; c < end; c += L) round_store<D>(to + c, result(c, std::min(L, end - c)), std::min(L, end - c));
  }

  void run_scattered(int begin, int end) const {
    for (int r = 0; r < rows; ++r)
      for (int c = begin; c < end; c += L) {
        const int n = std::min(L, end - c);
        V v = load(sums + r * ld + c, n);
        if (residual.data) v = v + residual.read(r, c, n);
        if (z.data) z.template write<D>(r, c, v, n);
        y.template write<D>(r, c, activate(activation, v), n);
      }
  }

  // The same where rows are consecutive elements: at most L rows, in squares that are transposed.
  void run_upright(int begin, int end) const {
    for (int c = begin; c < end; c += L) {
      V square[L];
#pragma GCC unroll 16
      for (int r = 0; r < L; ++r) square[r] = r < rows ? load(sums + r * ld + c, L) : V(0);
      transpose(square);
      with_activation(activation, [&](auto of) {
        for (int i = 0; i < std::min(L, end - c); ++i) {
          V v = square[i];
          if (residual.data) v = v + load(residual.at_column(c + i), rows);
          if (z.data) round_store<D>(z.at_column(c + i), v, rows);
          round_store<D>(y.at_column(c + i), of(v), rows);
        }
      });
    }
  }
};

// Whether the activation is a clamp to [low, high], which a tile applies in registers; else there are no bounds.
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
