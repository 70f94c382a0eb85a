// How a warp multiplies: fragments of A and B from tiles in shared memory, and D += A B on the tensor cores.
//
// A tile says how far its element (x, k) lies from its first one: Tile::offset(x, k), x a row of A or a column of B, a
// sum of both; kAlongK tells whether neighbours along k lie next to each other, or neighbours along x.
#pragma once
#include "intrin.cuh"

namespace pw {

// 16-bit floats: products of 16 rows, 8 columns and 16 values of k.
template <class T, bool STRICT>
struct Mma {
  static constexpr int kDepth = 16;
  static constexpr bool kPromotes = false;
  struct A {
    uint32_t v[4];
  };
  struct B {
    uint32_t v[2];
  };

  // Elements from a fragment's first one to the lane's own: of A, and of two neighbouring fragments of B.
  template <class Tile>
  PW_DEVICE static int lane_of_a() {
    const int lane = thread_index() % 32, row = lane % 8, right = lane / 8 % 2 * 8, below = lane / 16 * 8;
    return Tile::kAlongK ? Tile::offset(row + right, below) : Tile::offset(right, row + below);
  }
  template <class Tile>
  PW_DEVICE static int lane_of_b() {
    const int lane = thread_index() % 32, row = lane % 8, right = lane / 8 % 2 * 8, below = lane / 16 * 8;
    return Tile::kAlongK ? Tile::offset(row + below, right) : Tile::offset(below, row + right);
  }
  // `from`: the lane's element
  template <class Tile>
  PW_DEVICE static void load(const T* from, A& a) {
    load_matrices<!Tile::kAlongK>(a.v, from);
  }
  template <class Tile>
  PW_DEVICE static void load(const T* from, B (&b)[2]) {
    uint32_t v[4];
    load_matrices<!Tile::kAlongK>(v, from);
    b[0].v[0] = v[0], b[0].v[1] = v[1], b[1].v[0] = v[2], b[1].v[1] = v[3];
  }
  PW_DEVICE static void multiply(float (&d)[4], const A& a, const B& b) { multiply_16x8x16<T>(d, a.v, b.v); }
};

// A float as one TF32, or as the sum of two that keeps 22 of its 24 bits.
template <bool STRICT>
struct Tf32 {
  uint32_t high;
  PW_DEVICE void set(float v) { high = round_tf32(v); }
};
template <>
struct Tf32<true> {
  uint32_t high, low;
  uint32_t cross;  // what meets the other operand's low part: high, but 0 for Inf and NaN, or Inf 0 would make a NaN
  PW_DEVICE void set(float v) {
    const bool finite = v - v == 0;
    high = round_tf32(v);
    const float rest = v - bit_cast<float>(high);
    low = finite ? round_tf32(rest) : 0;
    if (finite && !(rest - rest == 0)) {  // v was rounded to Inf: cut off instead
      high = bit_cast<uint32_t>(v) & 0xffffe000;
      low = bit_cast<uint32_t>(v - bit_cast<float>(high)) & 0xffffe000;
    }
    cross = finite ? high : 0;
  }
};

// float32: products of 16 rows, 8 columns and 8 values of k, rounded to TF32 or (STRICT) as high * high + high * low +
// low * high, whose sums the caller has to move to other registers every 64 values of k: tensor cores cut off low bits
// of the sum at each step.
template <bool STRICT>
struct Mma<float, STRICT> {
  static constexpr int kDepth = 8;
  static constexpr bool kPromotes = STRICT;
  struct A {
    Tf32<STRICT> v[4];
  };
  struct B {
    Tf32<STRICT> v[2];
  };

  template <class Tile>
  PW_DEVICE static int lane_of_a() {
    return Tile::offset(thread_index() % 32 / 4, thread_index() % 4);
  }
  template <class Tile>
  PW_DEVICE static int lane_of_b() {
    return lane_of_a<Tile>();
  }
  template <class Tile>
  PW_DEVICE static void load(const float* from, A& a) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a.v[i].set(from[Tile::offset(i % 2 * 8, i / 2 * 4)]);
  }
  template <class Tile>
  PW_DEVICE static void load(const float* from, B (&b)[2]) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) b[j].v[i].set(from[Tile::offset(j * 8, i * 4)]);
  }
  PW_DEVICE static void multiply(float (&d)[4], const A& a, const B& b) {
    const uint32_t a_high[4] = {a.v[0].high, a.v[1].high, a.v[2].high, a.v[3].high};
    const uint32_t b_high[2] = {b.v[0].high, b.v[1].high};
    if constexpr (STRICT) {
      const uint32_t a_low[4] = {a.v[0].low, a.v[1].low, a.v[2].low, a.v[3].low};
      const uint32_t a_cross[4] = {a.v[0].cross, a.v[1].cross, a.v[2].cross, a.v[3].cross};
      const uint32_t b_low[2] = {b.v[0].low, b.v[1].low}, b_cross[2] = {b.v[0].cross, b.v[1].cross};
      multiply_16x8x8(d, a_low, b_cross);
      multiply_16x8x8(d, a_cross, b_low);
    }
    multiply_16x8x8(d, a_high, b_high);
  }
};

}  // namespace pw
