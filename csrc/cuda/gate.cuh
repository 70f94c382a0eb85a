// What the backward pass does to a step of an operand in shared memory: dZ takes the place of dY, and rows are added
// up.
#pragma once
#include "epilogue.cuh"

namespace pw {

// The derivatives that take more than comparisons.
PW_CALLED float activation_grad_called(const Activation& a, float dy, float saved) {
  return activation_grad(a, dy, saved);
}

// dy = dy activation'(saved), rounded as if it had been stored; zeros stay zeros. By all THREADS of the block, once for
// each element and not by every warp that multiplies it.
template <int THREADS, class Tile>
PW_DEVICE void apply_gate(const Activation& a, Tile& dy, const Tile& saved) {
  using T = typename Tile::Element;
  constexpr int N = 16 / sizeof(T), kRow = (Tile::kAlongK ? Tile::kDepth : Tile::kSize) / N;
  const float high = a.kind == Act::relu6 ? 6.0f : NAN;  // of relu nothing is too high
#pragma unroll 1
  for (int e = thread_index(); e < Tile::kSize * Tile::kDepth / N; e += THREADS) {
    const int inner = e % kRow * N, outer = e / kRow;
    const int x = Tile::kAlongK ? outer : inner, k = Tile::kAlongK ? inner : outer;
    Run<T, N> run, of;
    run.load(dy.at(x, k), N), of.load(saved.at(x, k), N);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float v = widen(run.v[i]), z = widen(of.v[i]);
      run.v[i] = narrow<T>(clips(a) ? select(z <= 0 || z >= high, 0.0f, v) : activation_grad_called(a, v, z));
    }
    run.store(dy.at(x, k), N);
  }
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
