// C = epilogue( sum_s partials[s] ): adds the shares of a split sum in an order that no run changes. Where there are
// row sums, their shares are one more column; where there is a mask, a warp has the columns of a word.
#pragma once
#include "epilogue.cuh"
#include "intrin.cuh"
#include "plan.h"

namespace pw {

// partials: (groups, splits, m, columns), contiguous
template <class T>
PW_KERNEL(kReduceThreads, 3)
reduce(PW_PARAMETER Gemm g, PW_PARAMETER GroupSteps steps, const void* partials, int64_t columns, int64_t groups,
       int64_t splits) {
  using Acc = acc_t<T>;
  struct Shared {
    Acc sum[kReduceWarps][32];
  };
  Shared& shared = shared_memory<Shared>();
  const int64_t size = g.m.count() * columns, threads = reduce_threads(g, columns);
  const int64_t total = groups * g.m.count() * threads;
  const int parts = reduce_parts(splits), width = reduce_width(splits);
  const int warp = thread_index() / 32, part = warp % parts;
  const int64_t share = (splits + parts - 1) / parts, begin = part * share;
  const int64_t end = begin + share < splits ? begin + share : splits;
  for (int64_t first = block_index() * width; first < total; first += grid_size() * width) {
    const int64_t i = first + warp / parts * 32 + thread_index() % 32;
    const int64_t row = divide(i, threads), n = i - row * threads, group = divide(row, g.m.count());
    const int64_t m = row - group * g.m.count();
    const bool inside = i < total && n < columns && n < g.n.count() + (g.row_sums != nullptr);
    Acc sum = 0;
    if (inside) {
      const Acc* from = static_cast<const Acc*>(partials) + group * splits * size + m * columns + n;
#pragma unroll 8
      for (int64_t s = begin; s < end; ++s) sum += from[s * size];
    }
    if (parts > 1) {
      shared.sum[part][thread_index() % 32] = sum;
      sync_threads();  // all parts are there
      sum = 0;
      for (int p = 0; p < parts; ++p) sum += shared.sum[p][thread_index() % 32];
      sync_threads();  // the parts have been read
    }
    uint32_t bit = 0;
    if (inside && part == 0) {
      if (n == g.n.count()) {
        Operands<T>::moved(g.row_sums, steps.row_sums, group)[m] = narrow<T>(sum);
      } else {
        const Operands<T> to(g, steps, group);
        const auto at = [&](const Matrix& matrix) {
          return offset_at(g.m, matrix.row, m) + offset_at(g.n, matrix.col, n);
        };
        const T y =
            finish(g, to, sum, g.bias_on_m ? m : n, {at(g.c), to.z ? at(g.z) : 0, to.residual ? at(g.residual) : 0});
        bit = g.mask.words && passes(g.activation, Acc(widen(y)));
      }
    }
    if (!g.mask.words) continue;
    const uint32_t bits = join_lanes<32>(bit << n % 32);
    if (part == 0 && i < total && n % 32 == 0) g.mask.words[m * g.mask.pitch + n / 32] = bits;
  }
}

}  // namespace pw
