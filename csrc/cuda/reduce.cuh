// C = epilogue( sum_s partials[s] ): adds the shares of a split sum in their order, so that every run rounds alike.
// Where there are row sums, their shares are one more column; where there is a mask, a warp has the columns of a word.
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
  const int64_t columns = partial_columns(g), size = g.m.count() * columns, threads = reduce_columns(g);
  for (int64_t i = block_index() * kReduceThreads + thread_index(); i < groups * g.m.count() * threads;
       i += grid_size() * kReduceThreads) {
    const int64_t n = i % threads, m = i / threads % g.m.count(), group = i / threads / g.m.count();
    uint32_t bit = 0;
    if (n < columns) {
      const Acc* from = static_cast<const Acc*>(partials) + group * splits * size + m * columns + n;
      Acc sum = 0;
#pragma unroll 4
      for (int64_t s = 0; s < splits; ++s) sum += from[s * size];
      if (n == g.n.count()) {
        Operands<T>::moved(g.row_sums, steps.row_sums, group)[m] = narrow<T>(sum);
        continue;
      }
      const Operands<T> to(g, steps, group);
      const auto at = [&](const Matrix& matrix) {
        return offset_at(g.m, matrix.row, m) + offset_at(g.n, matrix.col, n);
      };
      const T y =
          finish(g, to, sum, g.bias_on_m ? m : n, {at(g.c), to.z ? at(g.z) : 0, to.residual ? at(g.residual) : 0});
      bit = g.mask.words && passes(g.activation, Acc(widen(y)));
    }
    if (!g.mask.words) continue;
    const uint32_t bits = join_lanes<32>(bit << n % 32);
    if (n % 32 == 0) g.mask.words[m * g.mask.pitch + n / 32] = bits;
  }
}

}  // namespace pw
