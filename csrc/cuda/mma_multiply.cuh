// What a block of gemm_mma and gemm_lean does with a step in shared memory.
#pragma once
#include "mma_traits.cuh"

namespace pw {

// Elements from a tile's first one to the first one that the thread loads.
template <class Traits>
PW_DEVICE int first_of_a() {
  using TileA = typename Traits::TileA;
  const int warp = thread_index() / 32 % Traits::kWarpsM;
  return TileA::offset(warp * Traits::kWarpM, 0) + Traits::Multiply::template lane_of_a<TileA>();
}
template <class Traits>
PW_DEVICE int first_of_b() {
  using TileB = typename Traits::TileB;
  const int warp = thread_index() / 32 / Traits::kWarpsM;
  return TileB::offset(warp * Traits::kWarpN, 0) + Traits::Multiply::template lane_of_b<TileB>();
}

// sum += A B over the first `depth` values of k of a step, a and b the thread's first elements of the tiles
template <class Traits>
PW_DEVICE void multiply_tiles(const typename Traits::T* a_from, const typename Traits::T* b_from,
                              typename Traits::Sums& sum, int depth = Traits::TileA::kDepth) {
  using Multiply = typename Traits::Multiply;
  using TileA = typename Traits::TileA;
  using TileB = typename Traits::TileB;
  constexpr int kDepth = TileA::kDepth, kBlocksM = Traits::kBlocksM;
  // The largest tile's sums leave no registers for the operands of two products at once, those of others for four.
#pragma unroll(Multiply::kPromotes || kBlocksM == 4 ? 1 : 2)
  for (int k = 0; k < kDepth; k += Multiply::kDepth) {
    if (k >= depth) break;
    typename Multiply::A a[kBlocksM];
#pragma unroll
    for (int i = 0; i < kBlocksM; ++i) Multiply::template load<TileA>(a_from + TileA::offset(i * 16, k), a[i]);
#pragma unroll
    for (int j = 0; j < Traits::kBlocksN; j += 2) {
      typename Multiply::B b[2];
      Multiply::template load<TileB>(b_from + TileB::offset(j * 8, k), b);
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
