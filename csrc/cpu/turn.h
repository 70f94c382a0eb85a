// How a product is computed: as it is, transposed, or as a sum in chunks.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../problem.h"

namespace pw::cpu {

constexpr int64_t kReduceAtOnce = 1024;          // pixels that dW is summed up over in registers, without partial sums
constexpr int64_t kShortSum = 32, kNarrow = 16;  // values of k, rows or columns: little reuse of what is widened
constexpr double kUprightCost32 = 2, kUprightCost16 = 4, kUprightCostTiles = 9;
constexpr int64_t kLongestInOnePiece = 1 << 18;  // values of k: 64 MB of a packed panel

// What tests may decide instead of the rules below: 0 no, 1 yes wherever it is possible, -1 by the rules; chunked:
// pixels of a chunk too; vectors: most of a tile.
struct Forced {
  int turned = -1, packed = -1, streamed = -1, dots = -1, at_once = -1, split = -1, chunked = -1, widened = -1,
      pieces = -1, vectors = -1, beside = -1;
};
inline Forced forced;

inline int64_t total_k(const Gemm& g) {
  int64_t k = 0;
  for (int i = 0; i < g.segments; ++i) k += g.segment[i].k.count();
  return k;
}

// dW in NCHW reads A in place and packs B, a transposition of squares: whether B is the larger, and to be A instead.
inline bool turns_sum(const Gemm& g) {
  const Segment& s = g.segment[0];
  if (s.a.col.step[kRank - 1] != 1 || s.b.row.step[kRank - 1] != 1 || forced.turned == 0) return false;
  return forced.turned == 1 || g.n.count() > g.m.count();
}

// Few pixels: whether C^T = B^T A^T, which packs the pixels' operand and stores C upright, costs less than packing W.
// That is W^T of forward in channels_last and of dX in NCHW; the other products read W in place. `upright_cost`:
// elements of W that are packed while one of C is stored.
inline bool turns(const Gemm& g, double upright_cost) {
  if (g.segments == 0 || forced.turned == 0) return false;
  if (g.pixels == Pixels::on_k) return total_k(g) > kReduceAtOnce && turns_sum(g);
  if (forced.turned == 1) return true;
  const bool on_m = g.pixels == Pixels::on_m;
  for (int i = 0; i < g.segments; ++i) {
    const Matrix& w = on_m ? g.segment[i].b : g.segment[i].a;
    const int64_t k_step = (on_m ? w.row : w.col).step[kRank - 1], step = (on_m ? w.col : w.row).step[kRank - 1];
    if (on_m ? k_step != 1 || step == 1 : k_step == 1 || step != 1) return false;
  }
  if (!on_m && (g.n.count() != g.n.size[kRank - 1] || g.c.col.step[kRank - 1] != 1)) return false;
  const double pixels = double((on_m ? g.m : g.n).count()), channels = double((on_m ? g.n : g.m).count());
  return double(total_k(g)) * (channels - pixels) > upright_cost * pixels * channels;
}

inline Gemm transposed(Gemm g) {
  const auto turn = [](Matrix& m) { std::swap(m.row, m.col); };
  std::swap(g.m, g.n);
  for (int i = 0; i < g.segments; ++i) {
    Segment& s = g.segment[i];
    std::swap(s.a, s.b), turn(s.a), turn(s.b);
  }
  turn(g.c), turn(g.z), turn(g.residual);
  g.bias_on_m = !g.bias_on_m;
  if (g.pixels != Pixels::on_k) g.pixels = g.pixels == Pixels::on_m ? Pixels::on_n : Pixels::on_m;
  return g;
}

// A sum over more channels than can be packed in one piece is done like dW's, over chunks.
inline bool too_long(const Gemm& g) { return g.pixels != Pixels::on_k && total_k(g) > kLongestInOnePiece; }

// The product as it is computed.
inline Gemm as_computed(Gemm g, double upright_cost) {
  if (too_long(g)) {
    g.pixels = Pixels::on_k;
    return g;
  }
  return turns(g, upright_cost) ? transposed(g) : g;
}

// Whether bf16 that is multiplied in pairs, at half the rate, is still faster than widened to fp32 on the way: with
// little to multiply for what is packed, and where W is read in place.
inline bool pairs_pay(const Gemm& g) {
  return total_k(g) < kShortSum || std::min(g.m.count(), g.n.count()) <= kNarrow ||
         (g.pixels != Pixels::on_k && turns(g, kUprightCost16));
}

}  // namespace pw::cpu
