// The one microkernel: a tile of C in registers,
//
//     C[m, n] = activation( init[m, n] + sum over strips, k of A[m, k] B[k, n] ),    MR rows of NV vectors,
//
// A read element by element and broadcast, B in vectors. Forward, dX and dW of both layouts differ in the pointers
// only.
#pragma once
#include "multiply.h"
#include "target.h"
#include "vec_functions.h"
#include "vec_lanes.h"

namespace pw::PW_ISA {

constexpr int kFetchApart = 3;  // values of k per row of a tile
constexpr int kRowsAhead = 4;   // of B in place: 1.08 to 1.18 times as fast on Sapphire Rapids, 16 rows 0.9 to 1.15
// Of many long columns, which come from beyond the second-level cache: 1.03 to 1.12 times as fast on Zen 5; for columns
// of 64 and 32 values, or rows 784 bytes apart, 0.9 to 0.98.
constexpr int kRowsFarAhead = 24, kLongColumn = 128;
constexpr int64_t kFarColumns = 4 << 20;  // bytes of B
constexpr bool kFetchesB = kBytes == 64;  // of a narrow tile, only short panels are read in place
// Whether a tile has a copy of its own for when it ends in C and nothing else. Of AVX-512's, which start and end less
// often, the tallest do: the others would take 37 s more to compile, and are no faster; half lines of C are 0.97.
template <class D, int MR, int NV>
constexpr bool kPlainTile =
    kBytes == 32 || (kBytes == 64 && MR == kRows[NV - 1] &&
                     NV * Vec<typename D::Acc>::size * sizeof(typename D::Store) >= cpu::kLineBytes);

// PLAIN: a tile of whole vectors that ends in C, without a residual: 1.1 times as fast over 16 layers with AVX2, 1.01
// with AVX-512, where 16 -> 96 of bf16 gains 1.12.
template <class D, int MR, int NV, bool PLAIN>
PW_INLINE void one_tile(const Strip<typename D::Elem>* strips, int count, int lanes_of_last, const Target<D>& t,
                        int64_t index) {
  using Acc = typename D::Acc;
  using Store = typename D::Store;
  using V = Vec<Acc>;
  constexpr int L = V::size, kLine = std::max<int>(1, 64 / (L * sizeof(Store)));  // vectors of C in a line
  // Steps of k in one turn of the loop, where as few rows leave registers for their addresses: 1.03 to 1.08 times as
  // fast, other tiles 0.9.
  constexpr bool kTwoSteps = NV == kVectors;
  const int last = PLAIN ? L : lanes_of_last;
  const auto lanes = [last](int n) { return n == NV - 1 ? last : L; };
  const auto start = [&](int m, int n) -> V {
    if (t.init == Init::per_row) return V(t.bias[index * t.bias_next + m]);
    if (t.init == Init::per_column) return load(t.bias + index * t.bias_next + n * L, lanes(n));
    return V(0);
  };
  V acc[MR][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) acc[m][n] = start(m, n);

  const bool to_sums = !PLAIN && t.sums, adds_partial = !PLAIN && t.partial, adds_residual = !PLAIN && t.residual;
  Ahead* const ahead = PLAIN ? nullptr : t.ahead;
  Store* const c = t.c + index * t.c_next;
  const Store* const residual = t.residual + index * t.residual_next;
  // What the end of the tile writes and reads, and rows of the next, are fetched row by row while k runs: stores to
  // lines elsewhere would stall the next tile, loads this one, and all lines at once would be in the way of B's.
  const int64_t ahead_bytes = count && strips[0].a_ahead ? strips[0].k * int64_t(sizeof(typename D::Elem)) : 0;
  const char* const a_ahead =
      ahead_bytes ? reinterpret_cast<const char*>(strips[0].a) + index * strips[0].a_next + strips[0].a_ahead : nullptr;
  // Few values of k are no time for half lines of C to come in: 1.05 without (32 -> 16), where 96 values are 0.91.
  const bool in_vain = kBytes == 64 && NV == 1 && kLine > 1 && count && strips[0].k < kFetchApart * MR;
  const bool fetches_c = (PLAIN || t.c) && !t.streamed && !in_vain;
  const bool fetches = fetches_c || adds_residual || ahead || a_ahead;
  // Always inline, else gcc takes it for a call without effect.
  const auto fetch = [&](int from, int to) __attribute__((always_inline)) {
    for (int m = from; fetches_c && m < to; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < NV; n += kLine) __builtin_prefetch(c + t.c_row[m] + n * L, 1);
    for (int m = from; adds_residual && m < to; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < NV; n += kLine) __builtin_prefetch(residual + t.residual_row[m] + n * L);
    for (int m = from; ahead && m < to; ++m) ahead->fetch();
    for (int m = from; a_ahead && m < to; ++m)
      for (int64_t i = 0; i < ahead_bytes; i += 64) __builtin_prefetch(a_ahead + strips[0].a_row[m] + i, 0, 2);
  };

  const auto each = [&](auto change) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) acc[m][n] = change(acc[m][n], m, n);
  };
  V ended[MR][NV];
  bool any_ended = false;
  for (int s = 0; s < count; ++s) {
    if (s > 0 && strips[s - 1].ends_sum) {
      each([&](V v, int m, int n) {
        ended[m][n] = any_ended ? ended[m][n] + v : v;
        return V(0);
      });
      any_ended = true;
    }
    const Strip<typename D::Elem>& strip = strips[s];
    const typename D::Elem *a[MR], *b = strip.b + index * strip.b_next;
    const char* start = reinterpret_cast<const char*>(strip.a) + index * strip.a_next;
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) a[m] = reinterpret_cast<const typename D::Elem*>(start + strip.a_row[m]);
    const int64_t a_step = strip.a_step, b_step = strip.b_step, b_ahead = strip.b_ahead;
    // Few values of k, or few lines: all rows at once, for k in pieces would cost more than it saves.
    const bool apart = fetches && s == 0 && strip.k >= kFetchApart * MR && !(PLAIN && !a_ahead);
    const int64_t part = apart ? (strip.k + MR - 1) / MR : strip.k;
    if (fetches && s == 0 && !apart) fetch(0, MR);
    int64_t at = 0;
    int row = 0;
    for (int64_t left = strip.k; left > 0; left -= part) {
      if (apart) fetch(row, row + 1), ++row;
      const auto step = [&](bool ahead) __attribute__((always_inline)) {
        V bv[NV];
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) bv[n] = D::load_b(b + n * L, lanes(n));
        if (ahead) {
#pragma GCC unroll 4
          for (int n = 0; n < NV; ++n) __builtin_prefetch(b + b_ahead + n * L);
          __builtin_prefetch(b + b_ahead + NV * L - 1);  // rows start anywhere in a line
        }
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
          for (int n = 0; n < NV; ++n) acc[m][n] = D::fma(a[m] + at, bv[n], acc[m][n]);
        at += a_step, b += b_step;
      };
      int64_t k = std::min(part, left);
      if (kFetchesB && b_ahead) {
        for (; k > 0; --k) step(true);
      } else {
        if constexpr (kTwoSteps)
          for (; k > 1; k -= 2) step(false), step(false);
        for (; k > 0; --k) step(false);
      }
    }
  }

  if (any_ended) each([&](V v, int m, int n) { return v + ended[m][n]; });
  if (adds_partial)
    each([&](V v, int m, int n) { return v + load(t.partial + (index * MR + m) * kMostLanes + n * L, L); });
  if (to_sums) {
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) {
        Acc* to = t.sums + (index * MR + m) * t.sums_step + n * L;
        store(to, t.add ? load(to, lanes(n)) + acc[m][n] : acc[m][n], lanes(n));
      }
    return;
  }
  const V low(t.low), high(t.high);
  constexpr Acc kInfinity = std::numeric_limits<Acc>::infinity();
  const bool from_low = t.low > -kInfinity, to_high = t.high < kInfinity;
  if (adds_residual) each([&](V v, int m, int n) { return v + load(residual + t.residual_row[m] + n * L, lanes(n)); });
  if (!PLAIN && t.z) {
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
      D::template store_row<NV>(t.z + index * t.z_next + t.z_row[m], acc[m], last, t.streamed);
  }
  if (!PLAIN && t.curve) {
    V kept[MR][NV];
    each([&](V v, int m, int n) { return kept[m][n] = v; });
    apply(*t.curve, kept[0], MR * NV);
    each([&](V, int m, int n) { return kept[m][n]; });
  }
  if (from_low) each([&](V v, int, int) { return select(v < low, low, v); });
  if (to_high) each([&](V v, int, int) { return select(v > high, high, v); });
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) D::template store_row<NV>(c + t.c_row[m], acc[m], last, t.streamed);
}

template <class D, int MR, int NV>
void tile(const Strip<typename D::Elem>* strips, int count, int last, const Target<D>& t) {
  const bool plain = kPlainTile<D, MR, NV> && count > 0 && last == Vec<typename D::Acc>::size && t.c && !t.sums &&
                     !t.partial && !t.residual && !t.ahead && !t.curve && !t.z;
  for (int64_t i = 0; plain && i < t.tiles; ++i) one_tile<D, MR, NV, kPlainTile<D, MR, NV>>(strips, count, last, t, i);
  for (int64_t i = 0; !plain && i < t.tiles; ++i) one_tile<D, MR, NV, false>(strips, count, last, t, i);
}

template <class D>
using TileFunction = void (*)(const Strip<typename D::Elem>*, int, int, const Target<D>&);

template <class D>
struct Tiles {
  TileFunction<D> of[kVectors][kMostRows] = {};
  constexpr Tiles() { fill<1>(); }

 private:
  template <int NV>
  constexpr void fill() {
    fill_rows<NV>(std::make_integer_sequence<int, kRows[NV - 1]>());
    if constexpr (NV < kVectors) fill<NV + 1>();
  }
  template <int NV, int... M>
  constexpr void fill_rows(std::integer_sequence<int, M...>) {
    ((of[NV - 1][M] = &tile<D, M + 1, NV>), ...);
  }
};
template <class D>
inline constexpr Tiles<D> kTiles{};

// The tiles of one way to multiply, and what they keep from one to the next.
template <class D>
struct Microkernel {
  static constexpr const int* kMostRowsOf = kRows;  // by vectors
  void run(const Strip<typename D::Elem>* strips, int count, int rows, int vectors, int last, const Target<D>& t) {
    kTiles<D>.of[vectors - 1][rows - 1](strips, count, last, t);
  }
  void release() {}
};

}  // namespace pw::PW_ISA
