// C = epilogue( sum_s partials[s] ): adds the shares of a split sum in their order, so that every run rounds alike.
// Where there are row sums, their shares are one more column.
#pragma once
#include "epilogue.cuh"
#include "intrin.cuh"

namespace pw {

constexpr int kReduceThreads = 256;

// partials: (groups, splits, m, n or n + 1), contiguous
template <class T>
PW_KERNEL(kReduceThreads, 4)
reduce(PW_PARAMETER Gemm g, PW_PARAMETER GroupSteps steps, const void* partials, int64_t groups, int64_t splits) {
  using Acc = acc_t<T>;
  const int64_t columns = partial_columns(g), size = g.m.count() * columns;
  for (int64_t i = block_index() * kReduceThreads + thread_index(); i < groups * size;
       i += grid_size() * kReduceThreads) {
    const int64_t group = i / size, element = i % size, m = element / columns, n = element % columns;
    const Acc* from = static_cast<const Acc*>(partials) + group * splits * size + element;
    Acc sum = 0;
#pragma unroll 4
    for (int64_t s = 0; s < splits; ++s) sum += from[s * size];
    if (n == g.n.count()) {
      Operands<T>::moved(g.row_sums, steps.row_sums, group)[m] = narrow<T>(sum);
      continue;
    }
    const Operands<T> to(g, steps, group);
    const auto at = [&](const Matrix& matrix) { return offset(g.m, matrix.row, m) + offset(g.n, matrix.col, n); };
    finish(g, to, sum, g.bias_on_m ? m : n, {at(g.c), to.z ? at(g.z) : 0, to.residual ? at(g.residual) : 0});
  }
}

}  // namespace pw
