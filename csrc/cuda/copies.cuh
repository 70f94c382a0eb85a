// A thread's share of the copies of an operand, step after step: where its first vector of the next step lies. Rows
// and values of k may lie anywhere; what costs divisions is worked out once for a tile, and a step adds a constant.
#pragma once
#include <climits>

#include "offsets.cuh"
#include "operand.cuh"

namespace pw {

// Of an operand that lies along k: its first element at the thread's values of k, to which each row adds an offset from
// a table. Else: the thread's place among the rows, which it keeps, at its first value of k.
template <class T>
struct Place {
  const T* at = nullptr;
  int bytes = 0;  // not along k: of a vector that lie within the operand
};

PW_CALLED int64_t offset_called(const Axis& axis, const Steps& steps, int64_t index) {
  return offset_at(axis, steps, index);
}

// How THREADS copy a tile, so many bytes at a time; `flat`: k has one dimension.
template <int THREADS, class Tile>
struct Copies {
  using T = typename Tile::Element;
  static constexpr int kElement = sizeof(T);
  using Table = int64_t[Tile::kAlongK ? Tile::kSize : 1];  // of the offsets of rows

  // Goes to value k of the sum, in rows from x0 on.
  PW_DEVICE static void enter(Place<T>& p, const T* data, int bytes, const Axis& x_axis, const Steps& x_steps,
                              int64_t x0, const Axis& k_axis, const Steps& k_steps, int64_t k, bool flat,
                              Table& table) {
    const unsigned run = bytes / kElement, row = Tile::kInner / run, t = thread_index();
    if constexpr (Tile::kAlongK) {
      fill_offsets<Tile::kSize, THREADS>(table, x_axis, x_steps, x0);
      p.at = flat ? data + (k + t % row * run) * k_steps.step[kRank - 1] : data;
      if (!flat) seek(p.at, data, bytes, k_axis, k_steps, k);
    } else {
      const int64_t x = x0 + t % row * run, rest = x_axis.count() - x;
      p.bytes = rest <= 0 ? 0 : int(rest < run ? rest : run) * kElement;
      p.at = data + (rest > 0 ? offset_called(x_axis, x_steps, x) : 0);
      if (flat) p.at += (k + t / row) * k_steps.step[kRank - 1];
    }
  }

  // Goes one step further along the innermost dimension of k.
  PW_DEVICE static void advance(const T*& at, const Steps& k_steps, bool flat) {
    if (Tile::kAlongK || flat) at += Tile::kDepth * k_steps.step[kRank - 1];
  }

  // Goes to the step that starts with `k`, where k has several dimensions.
  PW_DEVICE static void seek(const T*& at, const T* data, int bytes, const Axis& k_axis, const Steps& k_steps,
                             int64_t k) {
    const unsigned run = bytes / kElement, row = Tile::kInner / run;
    if (Tile::kAlongK) at = data + offset_called(k_axis, k_steps, k + thread_index() % row * run);
  }

  // Starts the copies of a step that has all rows and values of k, 16 bytes at a time.
  PW_DEVICE static void copy_whole(const Place<T>& p, const Table& table, const Steps& k_steps, Tile& to) {
    constexpr int kRun = 16 / kElement, kRow = Tile::kInner / kRun, kRows = THREADS / kRow;
    constexpr int kCount = Tile::kSize * Tile::kDepth / Tile::kInner / kRows;
    const int inner = thread_index() % kRow * kRun, outer = thread_index() / kRow;
    const T* from = p.at;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int row = outer + i * kRows;
      if constexpr (Tile::kAlongK) {
        copy_async_whole(to.at(row, inner), from + table[row]);
      } else {
        copy_async_whole(to.at(inner, row), from);
        from += kRows * k_steps.step[kRank - 1];
      }
    }
  }

  // Starts the copies of a step of which `left_k` values of k are there. Elements of 2 bytes that lie on their own are
  // read into registers and stored, eight at a time.
  template <int BYTES>
  PW_DEVICE static void copy(const Place<T>& p, const Table& table, const Axis& k_axis, const Steps& k_steps, int64_t k,
                             int left_k, bool flat, Tile& to) {
    constexpr int kRun = BYTES / kElement, kRow = Tile::kInner / kRun, kRows = THREADS / kRow;
    constexpr int kCount = Tile::kSize * Tile::kDepth / Tile::kInner / kRows;  // of each thread
    constexpr int kAtOnce = BYTES == 2 ? (kCount < 8 ? kCount : 8) : 1;
    static_assert(THREADS % kRow == 0 && kCount * kRows * Tile::kInner == Tile::kSize * Tile::kDepth, "whole rows");
    const int inner = thread_index() % kRow * kRun, outer = thread_index() / kRow;
    const int rest = left_k - inner;
    const int bytes = !Tile::kAlongK ? p.bytes : rest <= 0 ? 0 : (rest < kRun ? rest : kRun) * kElement;
    const T* from = p.at;
#pragma unroll 1
    for (int first = 0; first < kCount; first += kAtOnce) {
      T v[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int row = outer + (first + i) * kRows;
        const T* source = from;
        bool inside = bytes > 0;
        if constexpr (Tile::kAlongK) {
          const int64_t offset = table[row];
          inside = inside && offset != kOutside;
          if (inside) source += offset;
        } else {
          inside = inside && row < left_k;
          if (flat)
            from += kRows * k_steps.step[kRank - 1];
          else if (inside)
            source += offset_called(k_axis, k_steps, k + row);
        }
        if constexpr (BYTES == 2)
          v[i] = inside ? *source : T{};
        else
          copy_async<BYTES>(Tile::kAlongK ? to.at(row, inner) : to.at(inner, row), source, inside ? bytes : 0);
      }
      if constexpr (BYTES == 2)
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int row = outer + (first + i) * kRows;
          *(Tile::kAlongK ? to.at(row, inner) : to.at(inner, row)) = v[i];
        }
    }
  }
};

// Of all widths, as a function that is called: its addresses would take the sums' registers.
template <int THREADS, class Tile>
PW_CALLED void copy_called(int bytes, Place<typename Tile::Element> p,
                           const typename Copies<THREADS, Tile>::Table& table, const Axis& k_axis, const Steps& k_steps,
                           int64_t k, int left_k, bool flat, Tile& to) {
  using Of = Copies<THREADS, Tile>;
  if (bytes == 16)
    Of::template copy<16>(p, table, k_axis, k_steps, k, left_k, flat, to);
  else if (bytes == 8)
    Of::template copy<8>(p, table, k_axis, k_steps, k, left_k, flat, to);
  else if (bytes == 4 || Of::kElement == 4)
    Of::template copy<4>(p, table, k_axis, k_steps, k, left_k, flat, to);
  else
    Of::template copy<Of::kElement>(p, table, k_axis, k_steps, k, left_k, flat, to);
}

}  // namespace pw
