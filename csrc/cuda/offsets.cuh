// Tables of offsets in shared memory: the divisions that nested dimensions cost are paid once per row and column of a
// tile, so that a kernel reads memory of any strides with one addition per element.
#pragma once
#include <cstdint>

#include "../problem.h"
#include "intrin.cuh"

namespace pw {

constexpr int64_t kOutside = INT64_MIN;  // beyond the end of the axis

// a / b, 0 <= a, 1 <= b. A 64-bit division takes 25 registers of those that sums need: beyond 2^32 bit by bit instead.
PW_CALLED int64_t divide_bits(int64_t a, int64_t b) {
  int64_t quotient = 0, rest = 0;
#pragma unroll 1
  for (int bit = 62; bit >= 0; --bit) {
    rest = rest << 1 | (a >> bit & 1);
    if (rest >= b) rest -= b, quotient |= int64_t(1) << bit;
  }
  return quotient;
}
PW_DEVICE int64_t divide(int64_t a, int64_t b) {
  return uint64_t(a | b) >> 32 ? divide_bits(a, b) : int64_t(uint32_t(a) / uint32_t(b));
}

// offset() without divisions where dimensions are not nested, and with the one above where they are.
PW_DEVICE int64_t offset_at(const Axis& axis, const Steps& steps, int64_t index) {
  int64_t sum = 0;
  int d = kRank - 1;
#pragma unroll 1
  for (; d > 0 && index >= axis.size[d]; --d) {
    const int64_t outer = divide(index, axis.size[d]);
    sum += (index - outer * axis.size[d]) * steps.step[d];
    index = outer;
  }
  return sum + index * steps.step[d];
}

// table[i] = offset of start + i, by THREADS neighbouring threads. A function that is called: 64-bit divisions copied
// to every table made kernels 16,000 instructions long, and took two thirds of the time to compile.
template <int COUNT, int THREADS>
PW_CALLED void fill_offsets(int64_t (&table)[COUNT], const Axis& axis, const Steps& steps, int64_t start) {
#pragma unroll 1
  for (int i = thread_index() % THREADS; i < COUNT; i += THREADS)
    table[i] = start + i < axis.count() ? offset_at(axis, steps, start + i) : kOutside;
}

// Element e of a tile of OUTER x INNER for consecutive threads to follow the direction that is contiguous in memory.
template <int OUTER, int INNER>
PW_DEVICE void place(bool inner_contiguous, int e, int& outer, int& inner) {
  outer = inner_contiguous ? e / INNER : e % OUTER;
  inner = inner_contiguous ? e % INNER : e / OUTER;
}

PW_DEVICE bool contiguous(const Steps& steps) { return steps.step[kRank - 1] == 1; }

}  // namespace pw
