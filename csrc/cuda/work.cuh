// The share of a product that a block works on.
#pragma once
#include "intrin.cuh"
#include "plan.h"

namespace pw {

// One launch: the groups of a convolution, or one product.
struct GemmLaunch {
  GemmPlan plan;
  GroupSteps groups;
  void* workspace;  // partial sums (groups, splits, m, partial_columns), contiguous, where plan.splits > 1
};

struct Work {
  int64_t m0, n0, group, split;  // first row and column of C
};

// The tile of C that is number `work`: tiles along the shorter side of C follow one another, so that what they read of
// the longer side's operand is still in the cache. By one thread, for all; ends with a barrier.
PW_CALLED void select_work(const Gemm& g, const GemmPlan& p, int64_t work, Work& selected) {
  const bool n_first = g.pixels == Pixels::on_m;
  const int64_t inner = n_first ? p.tiles_n : p.tiles_m, outer = n_first ? p.tiles_m : p.tiles_n;
  if (thread_index() == 0) {
    const int64_t i = work % inner, j = work / inner % outer, group = work / (inner * outer * p.splits);
    const int64_t m0 = (n_first ? j : i) * p.tile_m, n0 = (n_first ? i : j) * p.tile_n;
    selected.m0 = m0, selected.n0 = n0, selected.group = group;
    selected.split = work / (inner * outer) % p.splits;
  }
  sync_threads();
}

}  // namespace pw
