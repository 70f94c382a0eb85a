// What a block of gemm_mma and gemm_lean does with a step in shared memory.
#pragma once
#include "mma_traits.cuh"

namespace pw {

// sum += A B over the values of k of a step
template <class Traits>
PW_DEVICE void multiply_tiles(const typename Traits::TileA& a_tile, const typename Traits::TileB& b_tile,
                              typename Traits::Sums& sum) {
  using Multiply = typename Traits::Multiply;
  constexpr int kDepth = Traits::TileA::kDepth, kBlocksM = Traits::kBlocksM;
  const int warp_m = thread_index() / 32 % Traits::kWarpsM, warp_n = thread_index() / 32 / Traits::kWarpsM;
  // The largest tile's sums leave no registers for the operands of two products at once.
#pragma unroll(Multiply::kPromotes || kBlocksM == 4 ? 1 : kDepth / Multiply::kDepth)
  for (int k = 0; k < kDepth; k += Multiply::kDepth) {
    typename Multiply::A a[kBlocksM];
#pragma unroll
    for (int i = 0; i < kBlocksM; ++i) Multiply::load(a_tile, warp_m * Traits::kWarpM + i * 16, k, a[i]);
#pragma unroll
    for (int j = 0; j < Traits::kBlocksN; j += 2) {
      typename Multiply::B b[2];
      Multiply::load(b_tile, warp_n * Traits::kWarpN + j * 8, k, b);
#pragma unroll
      for (int i = 0; i < kBlocksM; ++i)
#pragma unroll
        for (int side = 0; side < 2; ++side) Multiply::multiply(sum[i][j + side], a[i], b[side]);
    }
  }
}

// to += from, from = 0
template <class Traits>
PW_DEVICE void move_sums(typename Traits::Sums& from, typename Traits::Sums& to) {
#pragma unroll
  for (int i = 0; i < Traits::kBlocksM; ++i)
#pragma unroll
    for (int j = 0; j < Traits::kBlocksN; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) to[i][j][e] += from[i][j][e], from[i][j][e] = 0;
}

}  // namespace pw
