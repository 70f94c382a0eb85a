// Vectors whose lanes change places: sums, every second lane, transposed squares.
#pragma once
#include <utility>

#include "vec.h"

namespace pw::PW_ISA {

// The sum of all lanes, halves first.
template <int D, class T, int... I>
PW_INLINE T sum_of(Vec<T> v, std::integer_sequence<int, I...> lanes) {
#ifdef __clang__
  v = v + Vec<T>(__builtin_shufflevector(v.v, v.v, (I ^ D)...));
#else
  v = v + Vec<T>(__builtin_shuffle(v.v, typename Vec<T>::Mask{(I ^ D)...}));
#endif
  if constexpr (D > 1) return sum_of<D / 2>(v, lanes);
  return v.v[0];
}
template <class T>
PW_INLINE T sum_of(Vec<T> v) {
  return sum_of<Vec<T>::size / 2>(v, std::make_integer_sequence<int, Vec<T>::size>());
}

// Every second lane of two vectors that follow one another.
template <class T, int... I>
PW_INLINE Vec<T> evens(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
#ifdef __clang__
  return __builtin_shufflevector(a.v, b.v, (2 * I)...);
#else
  return __builtin_shuffle(a.v, b.v, typename Vec<T>::Mask{(2 * I)...});
#endif
}
template <class T>
PW_INLINE Vec<T> evens(Vec<T> a, Vec<T> b) {
  return evens(a, b, std::make_integer_sequence<int, Vec<T>::size>());
}

// Transposes `size` vectors in place: log2(size) rounds that swap the off-diagonal blocks of 2 D x 2 D squares.
template <class T, int D, int... C>
PW_INLINE void swap_blocks(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, C...>) {
  constexpr int L = Vec<T>::size;
#ifdef __clang__
  const auto low = __builtin_shufflevector(a.v, b.v, ((C & D) ? L + C - D : C)...);
  b.v = __builtin_shufflevector(a.v, b.v, ((C & D) ? L + C : C + D)...);
#else
  const auto low = __builtin_shuffle(a.v, b.v, typename Vec<T>::Mask{((C & D) ? L + C - D : C)...});
  b.v = __builtin_shuffle(a.v, b.v, typename Vec<T>::Mask{((C & D) ? L + C : C + D)...});
#endif
  a.v = low;
}
template <class T, int D = 1>
PW_INLINE void transpose(Vec<T>* rows) {
  constexpr int L = Vec<T>::size;
  if constexpr (D < L) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i)
      if (!(i & D)) swap_blocks<T, D>(rows[i], rows[i + D], std::make_integer_sequence<int, L>());
    transpose<T, D * 2>(rows);
  }
}

}  // namespace pw::PW_ISA
