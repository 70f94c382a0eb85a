// What the backward pass does to a step of an operand in shared memory: dZ takes the place of dY, by what was saved or
// by its mask, and rows are added up.
#pragma once
#include "epilogue.cuh"

namespace pw {

// The derivatives that take more than comparisons.
PW_CALLED float activation_grad_called(const Activation& a, float dy, float saved) {
  return activation_grad(a, dy, saved);
}

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

// dy = dy activation'(saved), rounded as if it had been stored; zeros stay zeros.
template <int THREADS, class Tile>
PW_CALLED void apply_gate(const Activation& a, Tile& dy, const Tile& saved) {
  using T = typename Tile::Element;
  const float high = a.kind == Act::relu6 ? 6.0f : NAN;  // of relu nothing is too high
  change_runs<THREADS>(dy, [&](auto& run, int inner, int outer) {
    constexpr int N = sizeof(run.v) / sizeof(T);
    Run<T, N> of;
    of.load(&saved.data[outer][inner], N);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float v = widen(run.v[i]), z = widen(of.v[i]);
      run.v[i] = narrow<T>(clips(a) ? select(z <= 0 || z >= high, 0.0f, v) : activation_grad_called(a, v, z));
    }
  });
}

// A step of a mask in shared memory, its bits along the tile's inner direction.
template <class Tile>
struct MaskTile {
  static constexpr int kRow = (Tile::kInner + 31) / 32;  // words; of float32 along k half a word
  static constexpr int kWords = Tile::kSize * Tile::kDepth / Tile::kInner * kRow;
};

// Starts the copies of a mask's words for a step of dY that begins at (x0, k0) and whose elements lie where `side` and
// `depth` say. A function that is called: its addresses would take registers that the sums need.
template <int THREADS, class Tile, class Side>
PW_CALLED void start_mask(const Mask& mask, const Tile&, Side side, const int64_t (&depth)[Tile::kDepth], int64_t x0,
                          int64_t k0, uint32_t* to) {
  constexpr int kRow = MaskTile<Tile>::kRow;
  static_assert(MaskTile<Tile>::kWords <= THREADS, "a word for each thread");
  const int i = thread_index();
  if (i >= MaskTile<Tile>::kWords) return;
  const int outer = i / kRow, inner = i % kRow * 32, x = Tile::kAlongK ? outer : inner, k = Tile::kAlongK ? 0 : outer;
  const bool inside = side[x] != kOutside && depth[k] != kOutside;
  const int64_t row = (Tile::kAlongK ? x0 : k0) + outer, bit = (Tile::kAlongK ? k0 : x0) + inner;
  copy_async<4>(to + i, inside ? mask.words + (row * mask.pitch + bit / 32) : mask.words, inside ? 4 : 0);
}

// dy = passes ? dy : dy activation'(0). `skip`: bits of a word that belong to steps before it.
template <int THREADS, class Tile>
PW_CALLED void apply_mask(const Activation& a, Tile& dy, const uint32_t* words, int skip) {
  using T = typename Tile::Element;
  const bool clip = clips(a);
  const float slope = float(a.alpha);
  change_runs<THREADS>(dy, [&](auto& run, int inner, int outer) {
    constexpr int N = sizeof(run.v) / sizeof(T);
    const uint32_t bits = words[outer * MaskTile<Tile>::kRow + inner / 32] >> (inner % 32 + (Tile::kAlongK ? skip : 0));
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
  constexpr int kPart = Tile::kDepth / (THREADS / Tile::kSize);
  const int row = thread_index() % Tile::kSize, k = thread_index() / Tile::kSize * kPart;
  float sum = 0;
#pragma unroll 4
  for (int i = 0; i < kPart; ++i) sum += widen(*tile.at(row, k + i));
  return sum;
}

}  // namespace pw
