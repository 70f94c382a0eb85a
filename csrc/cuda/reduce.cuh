// C = epilogue( sum_s partials[s] ): adds the shares of a split sum in their order, so that every run rounds alike.
#pragma once
#include "epilogue.cuh"
#include "intrin.cuh"

namespace pw {

constexpr int kReduceThreads = 256;

// partials: (groups, splits, m, n), contiguous
template <class T>
PW_KERNEL(kReduceThreads, 4)
reduce(PW_PARAMETER Gemm g, PW_PARAMETER GroupSteps steps, const void* partials, int64_t groups, int64_t splits) {
  using Acc = acc_t<T>;
  const int64_t n_count = g.n.count(), size = g.m.count() * n_count;
  for (int64_t i = block_index() * kReduceThreads + thread_index(); i < groups * size;
       i += grid_size() * kReduceThreads) {
    const int64_t group = i / size, element = i % size, m = element / n_count, n = element % n_count;
    const Acc* from = static_cast<const Acc*>(partials) + group * splits * size + element;
    Acc sum = 0;
#pragma unroll 4
    for (int64_t s = 0; s < splits; ++s) sum += from[s * size];
    const Operands<T> to(g, steps, group);
    const auto at = [&](const Matrix& matrix) { return offset(g.m, matrix.row, m) + offset(g.n, matrix.col, n); };
    finish(g, to, sum, g.bias_on_m ? m : n, {at(g.c), to.z ? at(g.z) : 0, to.residual ? at(g.residual) : 0});
  }
}

}  // namespace pw
