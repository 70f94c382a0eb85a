// Tables of offsets in shared memory: the divisions that nested dimensions cost are paid once per row and column of a
// tile, so that a kernel reads memory of any strides with one addition per element.
#pragma once
#include <cstdint>

#include "../problem.h"
#include "intrin.cuh"

namespace pw {

constexpr int64_t kOutside = INT64_MIN;  // beyond the end of the axis

PW_DEVICE int64_t offset_or_outside(const Axis& axis, const Steps& steps, int64_t index) {
  return index < axis.count() ? offset(axis, steps, index) : kOutside;
}

// table[i] = offset of start + i, by all THREADS of the block
template <int COUNT, int THREADS>
PW_DEVICE void fill_offsets(int64_t (&table)[COUNT], const Axis& axis, const Steps& steps, int64_t start) {
  for (int i = thread_index(); i < COUNT; i += THREADS) table[i] = offset_or_outside(axis, steps, start + i);
}

// Element e of a tile of OUTER x INNER for consecutive threads to follow the direction that is contiguous in memory.
template <int OUTER, int INNER>
PW_DEVICE void place(bool inner_contiguous, int e, int& outer, int& inner) {
  outer = inner_contiguous ? e / INNER : e % OUTER;
  inner = inner_contiguous ? e % INNER : e / OUTER;
}

PW_DEVICE bool contiguous(const Steps& steps) { return steps.step[kRank - 1] == 1; }

}  // namespace pw
