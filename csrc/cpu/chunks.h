// A backward pass chunk by chunk of pixels: dZ and db of a chunk, then its dX and its share of dW, while dZ is in the
// caches. dY and what the derivative reads come from memory once, and dZ goes there only if it is asked for.
#pragma once
#include "kernels.h"

namespace pw::cpu {

// Of dZ: a fifth of an L2 of 1 MB, beside X, dX, what is packed of them, and sums.
constexpr int64_t kChunkBytes = 192 << 10;
constexpr int64_t kLeastChunk = 64;            // pixels: a tile's columns in NCHW
constexpr int64_t kChunkedBytes = 1 << 20;     // of dZ: below, it stays in the caches between passes too
constexpr int64_t kChunkedLinear = 16 << 20;   // of dY without activation: below, a last cache holds it for dX and dW
constexpr int64_t kChunkedWeights = 64 << 10;  // elements of dW: a quarter of that L2
constexpr int64_t kChunkedSums = 1 << 20;      // of all parts' dW: their sum is a pass of its own
// Fewer parts would leave many threads without work. Their number may not decide: it would change the order of sums.
constexpr int64_t kLeastParts = 8, kMostParts = 32;

// An axis of pixels, cut along one dimension; everything inside it is whole. The parts, consecutive chunks that are
// summed up by one thread, decide the order of summation: the shape alone decides them.
struct Chunks {
  Axis axis;
  int split;       // the dimension
  int64_t pieces;  // of it
  int64_t step;    // they are multiples of
  int64_t count, parts;

  struct Box {
    int64_t start[kRank];
    Axis axis;
    int64_t first(const Steps& steps) const {
      int64_t sum = 0;
      for (int d = 0; d < kRank; ++d) sum += start[d] * steps.step[d];
      return sum;
    }
  };
  Box box(int64_t chunk) const {
    Box box{};
    const Range piece = part_in_steps(axis.size[split], pieces, chunk % pieces, step);
    for (int d = split + 1; d < kRank; ++d) box.axis.size[d] = axis.size[d];
    box.start[split] = piece.begin, box.axis.size[split] = piece.size();
    int64_t rest = chunk / pieces;
    for (int d = split - 1; d >= 0; --d) box.start[d] = rest % axis.size[d], rest /= axis.size[d];
    return box;
  }
};

inline Chunks cut(const Axis& axis, int64_t channels, int64_t weights, int element_bytes, bool channels_inner) {
  Chunks c{axis, kRank - 1};
  int64_t wanted = std::max(kLeastChunk, kChunkBytes / (channels * element_bytes));
  if (forced.chunked > 1) wanted = forced.chunked;
  int64_t inside = 1;  // pixels of one step along the dimension
  while (c.split > 0 && inside * axis.size[c.split] < wanted) inside *= axis.size[c.split--];
  c.step = channels_inner || c.split < kRank - 1 ? 1 : kLeastChunk;
  const int64_t length = axis.size[c.split], outside = axis.count() / (inside * length);
  c.pieces = std::clamp<int64_t>(ceil_div(length * inside, wanted), 1, std::max<int64_t>(1, length / c.step));
  c.count = outside * c.pieces, c.parts = 1;
  while (2 * c.parts <= std::min(c.count, kMostParts) && 2 * c.parts * weights <= kChunkedSums) c.parts *= 2;
  if (outside == 1) {  // as many for every part
    c.pieces = std::min(ceil_div(c.pieces, c.parts) * c.parts, std::max<int64_t>(1, length / c.step));
    c.count = c.pieces, c.parts = std::min(c.parts, c.count);
  }
  return c;
}

// All of a pass.
struct Chunked {
  const Gemm* const* gemms;  // dX and dW of every input; they read dY in dZ's place
  int products;
  const ActivationGrad& pass;  // on the same axis; without dz it stays in the caches
  Chunks chunks;
  Tiling tiling;
  int element_bytes;
  double* db;         // [part][channel]; null: not wanted
  void* const* sums;  // of each product that is a dW, [part][m][n]
  bool derives() const { return pass.activation.kind != Act::none; }
};

// A product over a chunk as it is computed; all chunks' sums of dW are alike,
inline Gemm as_chunked(const Gemm& g, const Gemm& whole, const Tiling& tiling) {
  if (g.pixels == Pixels::on_k) return turns_sum(whole) ? transposed(g) : g;
  return as_computed(g, tiling.upright_cost);
}
// on one thread; what dW gets of it is one sum.
inline Plan chunk_plan(const Chunked& job, const Gemm& g) {
  Plan p = make_plan(g, job.chunks.count, job.tiling, job.element_bytes, 1);
  if (g.pixels == Pixels::on_k) p.at_once = false, p.k_parts = 1, p.units = p.m_parts * p.n_parts;
  return p;
}

// Elements of all of dW, whose sums stay beside dZ in the caches.
inline int64_t weights_of(const Gemm* const* gemms, int products) {
  int64_t sum = 0;
  for (int i = 0; i < products; ++i)
    if (gemms[i]->pixels == Pixels::on_k) sum += gemms[i]->m.count() * gemms[i]->n.count();
  return sum;
}

}  // namespace pw::cpu
