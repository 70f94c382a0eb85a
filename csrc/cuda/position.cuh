// A place in the sum over k, which runs through the segments in steps of STEP values.
#pragma once
#include "../problem.h"
#include "intrin.cuh"

namespace pw {

template <int STEP>
struct Position {
  int segment = -1;
  int64_t k = 0;  // within the segment
  int left;       // steps, this one included
  int table = 1;  // alternates with the segments, to choose between two tables

  // The place `skip` steps from the start, with `share` steps to go.
  PW_DEVICE Position(const Gemm& g, int64_t skip, int64_t share) : left(int(share)) {
    if (left <= 0) return;
    enter_next(g);
    for (; skip >= steps(g); enter_next(g)) skip -= steps(g);
    k = skip * STEP;
  }

  PW_DEVICE int64_t count(const Gemm& g) const { return g.segment[segment].k.count(); }
  PW_DEVICE int64_t steps(const Gemm& g) const { return (count(g) + STEP - 1) / STEP; }

  PW_DEVICE void enter_next(const Gemm& g) {
    do ++segment;
    while (count(g) == 0);
    k = 0, table ^= 1;
  }

  // Whether the next step is the first of a segment.
  PW_DEVICE bool advance(const Gemm& g) {
    k += STEP;
    if (--left <= 0 || k < count(g)) return false;
    enter_next(g);
    return true;
  }
};

}  // namespace pw
