// An operand's tile in shared memory, and its copies from memory of any strides, as wide as the alignment allows.
#pragma once
#include "offsets.cuh"
#include "plan.h"

namespace pw {

// A step of one operand in shared memory: rows of A or columns of B (x) by values of k. The padding puts what a warp
// reads at once into different banks.
template <class T, int SIZE, bool ALONG_K, int DEPTH = kStepBytes / int(sizeof(T))>
struct OperandTile {
  using Element = T;
  static constexpr bool kAlongK = ALONG_K;
  static constexpr int kSize = SIZE, kDepth = DEPTH, kInner = ALONG_K ? DEPTH : SIZE;
  static constexpr int kPitch = ALONG_K ? kDepth + 16 / int(sizeof(T)) : SIZE + 8;
  alignas(16) T data[ALONG_K ? SIZE : kDepth][kPitch];

  PW_HD static constexpr int offset(int x, int k) { return ALONG_K ? x * kPitch + k : k * kPitch + x; }
  PW_DEVICE T* at(int x, int k) { return &data[0][0] + offset(x, k); }
  PW_DEVICE const T* at(int x, int k) const { return &data[0][0] + offset(x, k); }
};

// Copies a tile, BYTES at a time. side[x] and depth[k]: offsets, or kOutside; `left_x` and `left_k`: how many there are
// from the tile's start on.
template <int THREADS, int BYTES, class Tile, class Side, class Depth>
PW_DEVICE void copy_operand(const typename Tile::Element* data, const Side& side, const Depth& depth, int64_t left_x,
                            int64_t left_k, Tile& to) {
  using T = typename Tile::Element;
  constexpr int V = BYTES / sizeof(T), kRow = (Tile::kAlongK ? Tile::kDepth : Tile::kSize) / V;
  constexpr int kCount = Tile::kSize * Tile::kDepth / V;
#pragma unroll(BYTES == 2 ? 4 : 1)  // more addresses at once would take registers that the sums need
  for (int i = 0; i < (kCount + THREADS - 1) / THREADS; ++i) {
    const int e = thread_index() + i * THREADS, inner = e % kRow * V, outer = e / kRow;
    if (kCount % THREADS != 0 && e >= kCount) break;
    const int x = Tile::kAlongK ? outer : inner, k = Tile::kAlongK ? inner : outer;
    const bool inside = side[x] != kOutside && depth[k] != kOutside;
    const T* from = inside ? data + (side[x] + depth[k]) : data;
    if constexpr (BYTES == 2) {
      *to.at(x, k) = inside ? *from : T{};
    } else {
      const int64_t left = Tile::kAlongK ? left_k - k : left_x - x;
      copy_async<BYTES>(to.at(x, k), from, inside ? int(left < V ? left : V) * int(sizeof(T)) : 0);
    }
  }
}

// A function that is called: addresses of all widths, computed ahead of a kernel's loop, would take the sums'
// registers.
template <int THREADS, class Tile, class Side, class Depth>
PW_CALLED void copy_operand(int bytes, const typename Tile::Element* data, Side side, Depth depth, int64_t left_x,
                            int64_t left_k, Tile& to) {
  constexpr int kElement = sizeof(typename Tile::Element);
  if (bytes == 16)
    copy_operand<THREADS, 16>(data, side, depth, left_x, left_k, to);
  else if (bytes == 8)
    copy_operand<THREADS, 8>(data, side, depth, left_x, left_k, to);
  else if (bytes == 4 || kElement == 4)
    copy_operand<THREADS, 4>(data, side, depth, left_x, left_k, to);
  else
    copy_operand<THREADS, kElement>(data, side, depth, left_x, left_k, to);
}

}  // namespace pw
