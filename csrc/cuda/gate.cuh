// What the backward pass does to a step of an operand in shared memory: dZ takes the place of dY by a mask, and rows
// are added up.
#pragma once
#include "epilogue.cuh"

namespace pw {

// Calls change(run, inner, outer) for all runs of 16 bytes of a tile, by all THREADS of the block: once for each
// element and not by every warp that multiplies it.
template <int THREADS, class Tile, class Change>
PW_DEVICE void change_runs(Tile& tile, Change change) {
  using T = typename Tile::Element;
  constexpr int N = 16 / sizeof(T), kRow = Tile::kInner / N;
#pragma unroll 1
  for (int e = thread_index(); e < Tile::kSize * Tile::kDepth / N; e += THREADS) {
    const int inner = e % kRow * N, outer = e / kRow;
    Run<T, N> run;
    run.load(&tile.data[outer][inner], N);
    change(run, inner, outer);
    run.store(&tile.data[outer][inner], N);
  }
}

// A step of a mask in shared memory, its bits along the tile's inner direction.
template <class Tile>
struct MaskTile {
  static constexpr int kRow = (Tile::kInner + 31) / 32;  // words; of float32 along k half a word
  static constexpr int kWords = Tile::kSize * Tile::kDepth / Tile::kInner * kRow;
};

// dy = passes ? dy : dy activation'(0)
template <int THREADS, class Tile>
PW_CALLED void apply_mask(const Activation& a, Tile& dy, const uint32_t* words) {
  using T = typename Tile::Element;
  const bool clip = clips(a);
  const float slope = float(a.alpha);
  const auto bits_of = [&](int inner, int outer) {
    return words[outer * MaskTile<Tile>::kRow + inner / 32] >> inner % 32;
  };
  if (sizeof(T) == 2 && clip) {  // pairs, without looking at what they are
    change_runs<THREADS>(dy, [&](auto& run, int inner, int outer) {
      uint32_t pairs[sizeof(run) / 4];
      const uint32_t bits = bits_of(inner, outer) & 0xff, spread = bits | bits << 15;  // of pair i: 2 i and 2 i + 16
      memcpy(pairs, &run, sizeof(run));
#pragma unroll
      for (int i = 0; i < int(sizeof(run) / 4); ++i) pairs[i] &= (spread >> 2 * i & 0x00010001) * 0xffff;
      memcpy(&run, pairs, sizeof(run));
    });
    return;
  }
  change_runs<THREADS>(dy, [&](auto& run, int inner, int outer) {
    constexpr int N = sizeof(run.v) / sizeof(T);
    const uint32_t bits = bits_of(inner, outer);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float v = widen(run.v[i]);
      run.v[i] = narrow<T>(bits >> i & 1 ? v : clip ? 0.0f : v * slope);
    }
  });
}

// The sum of a part of one row: thread i adds to row i % kSize.
template <int THREADS, class Tile>
PW_DEVICE float add_row(const Tile& tile) {
  using T = typename Tile::Element;
  constexpr int kPart = Tile::kDepth / (THREADS / Tile::kSize),
                N = Tile::kAlongK && kPart * sizeof(T) % 16 == 0 ? 16 / sizeof(T) : 1;
  const int row = thread_index() % Tile::kSize, k = thread_index() / Tile::kSize * kPart;
  float sum = 0;
#pragma unroll(N == 1 ? 4 : 1)
  for (int i = 0; i < kPart; i += N) {
    Run<T, N> run;
    run.load(tile.at(row, k + i), N);
#pragma unroll
    for (int j = 0; j < N; ++j) sum += widen(run.v[j]);
  }
  return sum;
}

}  // namespace pw
