// One of gemm_mma's kernels: how its operands lie, and how large its tile is.
#pragma once
#include "mma.cuh"
#include "operand.cuh"

namespace pw {

constexpr int kStages = 3;        // of shared memory, through which the steps of a product pass
constexpr int kWarpColumns = 32;  // of C that a warp computes: those of a word of a mask

// WARPS_M x WARPS_N warps of WARP_M x 32 elements of C each.
template <class T_, bool STRICT, bool A_ALONG_K, bool B_ALONG_K, int WARPS_M, int WARPS_N, int WARP_M>
struct MmaTraits {
  using T = T_;
  using Multiply = Mma<T, STRICT>;
  static constexpr int kWarpsM = WARPS_M, kWarpsN = WARPS_N, kWarpM = WARP_M, kWarpN = kWarpColumns;
  static constexpr int kTileM = WARPS_M * WARP_M, kTileN = WARPS_N * kWarpN, kThreads = 32 * WARPS_M * WARPS_N;
  static constexpr int kBlocksM = WARP_M / 16, kBlocksN = kWarpN / 8;  // products of a warp
  using Sums = float[kBlocksM][kBlocksN][4];                           // of a thread
  using TileA = OperandTile<T, kTileM, A_ALONG_K>;
  using TileB = OperandTile<T, kTileN, B_ALONG_K>;
  // Of a multiprocessor. The sums of the largest tile take half of the registers, those of STRICT twice as many.
  static constexpr int kBlocks = kThreads == 256 ? 2 : STRICT ? 3 : 4;
};

// gemm_lean's have twice the channels in a step, of which a thread keeps track, and one stage less.
// WIDE: both operands are read 16 bytes at a time.
template <class Traits, bool WIDE>
struct LeanTraits : Traits {
  static constexpr bool kWide = WIDE;
  using T = typename Traits::T;
  // Nothing but ends_simply(): the largest tile's sums leave no registers for more.
  static constexpr bool kSimple = Traits::kBlocksM == 4 && sizeof(T) == 2;
  static constexpr int kStages = 2, kDepth = kLeanStepBytes / int(sizeof(T));
  static constexpr bool kBiasOnM = !Traits::TileB::kAlongK;  // as in NCHW, where B is X and lies along pixels
  using TileA = OperandTile<T, Traits::kTileM, Traits::TileA::kAlongK, kDepth>;
  using TileB = OperandTile<T, Traits::kTileN, Traits::TileB::kAlongK, kDepth>;
};

}  // namespace pw
