// What the lanes of a warp do together; `t` is the first of 32 threads.
#pragma once
#include "convert.h"

namespace ptx {

inline void shuffle(Thread* t, const Instruction& i) {
  uint32_t values[32];
  for (int lane = 0; lane < 32; ++lane) values[lane] = get<uint32_t>(t[lane], i.of[0]);
  for (int lane = 0; lane < 32; ++lane) {
    set<uint32_t>(t[lane], i.to[0], values[lane ^ get<uint32_t>(t[lane], i.of[1])]);
    if (i.to.size() > 1) set<bool>(t[lane], i.to[1], true);
  }
}
// Four matrices of 8 x 8 16-bit values, a row from each lane's address.
inline void load_matrices(Thread* t, const Instruction& i) {
  uint16_t rows[32][8];
  for (int lane = 0; lane < 32; ++lane) std::memcpy(rows[lane], place(t[lane], i, i.of[0], 16, true), 16);
  const bool transposed = i.has("trans");
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < 4; ++m) {
      uint32_t pair = 0;
      for (int e = 0; e < 2; ++e) {
        const int outer = lane / 4, inner = lane % 4 * 2 + e;
        pair |= uint32_t(transposed ? rows[m * 8 + inner][outer] : rows[m * 8 + outer][inner]) << e * 16;
      }
      set<uint32_t>(t[lane], i.to[m], pair);
    }
}
inline void store_matrices(Thread* t, const Instruction& i) {
  for (int row = 0; row < 32; ++row) {
    char* const to = place(t[row], i, i.to[0], 16, true);
    for (int part = 0; part < 4; ++part) {
      const auto pair = get<uint32_t>(t[row % 8 * 4 + part], i.of[row / 8]);
      std::memcpy(to + part * 4, &pair, 4);
    }
  }
}
// D = A B + C of 16 x 8 results: of 16-bit floats with 16 values of k, of TF32 with 8.
template <float (*WIDEN)(uint16_t)>
void multiply_matrices(Thread* t, const Instruction& i) {
  constexpr bool kPairs = WIDEN != nullptr;
  constexpr int kDepth = kPairs ? 16 : 8;
  float a[16][kDepth], b[kDepth][8], sums[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, in_group = lane % 4;
    const auto value = [&](int operand, int e) {
      const auto v = get<uint32_t>(t[lane], i.of[operand]);
      if constexpr (kPairs)
        return WIDEN(uint16_t(v >> e * 16));
      else
        return from_bits<float>(v & 0xffffe000);
    };
    for (int part = 0; part < 4; ++part)
      for (int e = 0; e < (kPairs ? 2 : 1); ++e)
        a[group + part % 2 * 8][kPairs ? in_group * 2 + e + part / 2 * 8 : in_group + part / 2 * 4] = value(part, e);
    for (int part = 0; part < 2; ++part)
      for (int e = 0; e < (kPairs ? 2 : 1); ++e)
        b[kPairs ? in_group * 2 + e + part * 8 : in_group + part * 4][group] = value(4 + part, e);
    for (int e = 0; e < 4; ++e) sums[group + e / 2 * 8][in_group * 2 + e % 2] = get<float>(t[lane], i.of[6 + e]);
  }
  for (auto row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      double sum = sums[row][column];
      for (int k = 0; k < kDepth; ++k) sum += double(a[row][k]) * b[k][column];
      sums[row][column] = float(sum);
    }
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < 4; ++e) set<float>(t[lane], i.to[e], sums[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2]);
}

}  // namespace ptx
