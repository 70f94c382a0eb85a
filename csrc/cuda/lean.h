// What a launch of gemm_lean is handed: a product, its plan and its tiles as the kernel reads them. All of it is worked
// out here once, in 32 bits, so that a thread works out nothing but what is its own.
#pragma once
#include "plan.h"

namespace pw {

// a / divisor by a product and a shift, for a < 2^31: factor = 2^shift / divisor, rounded up, has 32 bits.
struct Divider {
  uint32_t divisor = 1, factor = uint32_t(1) << 31, shift = 31;
  Divider() = default;
  explicit Divider(uint32_t by) : divisor(by) {
    while (by > uint32_t(1) << (shift - 31)) ++shift;
    factor = uint32_t(((uint64_t(1) << shift) + by - 1) / by);
  }
  PW_HD uint32_t divide(uint32_t a) const { return uint32_t(uint64_t(a) * factor >> shift); }
};

// An axis of up to three dimensions, and steps along it in elements.
struct LeanSteps {
  uint32_t inner = 0, outer = 0, outermost = 0;
};
struct LeanAxis {
  uint32_t count = 0;
  bool flat = true, two = true;  // dimensions: one, at most two
  Divider inner, outer;          // their sizes

  PW_HD uint32_t offset(const LeanSteps& steps, uint32_t index) const {
    if (flat) return index * steps.inner;
    const uint32_t row = inner.divide(index), in_row = (index - row * inner.divisor) * steps.inner;
    if (two) return in_row + row * steps.outer;
    const uint32_t image = outer.divide(row);
    return in_row + (row - image * outer.divisor) * steps.outer + image * steps.outermost;
  }
};

struct LeanMatrix {
  void* data = nullptr;  // null: absent
  LeanSteps row, col;
};
struct LeanSegment {
  LeanMatrix a, b;
  LeanAxis k;
};

// Bytes from the beginning of a block's shared memory to an operand's tile of a step.
struct LeanPlace {
  uint32_t first = 0, by_stage = 0, by_step = 0;
};

// Where a block works: first row and column of a tile of C, of which group, and which share of the sum over k.
struct LeanWork {
  uint32_t m0, n0;
  int group, split;
};

struct LeanLaunch {
  LeanAxis m, n;
  int segments = 0;
  LeanSegment segment[kSources];
  LeanMatrix c, z, residual;
  GroupSteps groups;  // of one segment
  const void* bias = nullptr;
  Activation activation;
  uint32_t* mask = nullptr;  // of C, in rows of
  uint32_t mask_pitch = 0;   // words
  bool simple = false;       // ends_simply()

  bool gated = false, gate_on_a = true;  // whether A, or B, is dY, which becomes dZ
  Activation gate;
  const uint32_t* gate_mask = nullptr;  // in rows of
  uint32_t gate_pitch = 0;              // words
  void* row_sums = nullptr;

  float* partials = nullptr;  // where the sum over k has shares, in rows of
  uint32_t columns = 0;       // so many
  uint32_t work = 0;          // tiles of all shares and groups
  Divider tiles, other;       // of the side whose tiles follow one another, and of the other one
  Divider shares;             // of a group
  bool n_first = true;        // whether that side is N

  bool a_stays = false, b_stays = false;  // in shared memory
  LeanPlace a, b;
  int a_bytes = 16, b_bytes = 16, c_bytes = 16;  // read and written at a time, C's as the residual's and z's
  int steps = 0, steps_per_split = 0;
  int last_depth = 0;  // of the values of k of a tile's last step those that may differ from 0

  PW_HD LeanWork find(uint32_t index, uint32_t tile_m, uint32_t tile_n) const {
    uint32_t j = tiles.divide(index), split = 0, group = 0;
    const uint32_t i = index - j * tiles.divisor;
    if (j >= other.divisor) {
      split = other.divide(j), j -= split * other.divisor;
      group = shares.divide(split), split -= group * shares.divisor;
    }
    return {(n_first ? j : i) * tile_m, (n_first ? i : j) * tile_n, int(group), int(split)};
  }
  PW_HD int steps_of(int split) const {
    const int rest = steps - split * steps_per_split;
    return rest < steps_per_split ? rest : steps_per_split;
  }
  PW_HD bool adds_rows(const LeanWork& w) const { return row_sums && w.n0 == 0; }
};

inline LeanAxis lean_axis(const Axis& axis) {
  LeanAxis to;
  to.count = uint32_t(axis.count()), to.flat = is_flat(axis), to.two = axis.size[kRank - 3] == 1;
  if (to.count > 0)
    to.inner = Divider(uint32_t(axis.size[kRank - 1])), to.outer = Divider(uint32_t(axis.size[kRank - 2]));
  return to;
}
inline LeanMatrix lean_matrix(const Matrix& x) {
  const auto steps = [](const Steps& s) {
    return LeanSteps{uint32_t(s.step[kRank - 1]), uint32_t(s.step[kRank - 2]), uint32_t(s.step[kRank - 3])};
  };
  return {x.data, steps(x.row), steps(x.col)};
}

inline LeanLaunch lean_launch(const Gemm& g, const GemmPlan& p, const GroupSteps& groups, void* workspace) {
  LeanLaunch l;
  l.m = lean_axis(g.m), l.n = lean_axis(g.n);
  l.segments = g.segments;
  for (int s = 0; s < g.segments; ++s)
    l.segment[s] = {lean_matrix(g.segment[s].a), lean_matrix(g.segment[s].b), lean_axis(g.segment[s].k)};
  l.c = lean_matrix(g.c), l.z = lean_matrix(g.z), l.residual = lean_matrix(g.residual);
  l.groups = groups;
  l.a_bytes = p.access.a.bytes, l.b_bytes = p.access.b.bytes;
  l.c_bytes = written_bytes(g, p.access), l.simple = ends_simply(g, p.access);
  l.activation = g.activation, l.mask = g.mask.words, l.mask_pitch = uint32_t(g.mask.pitch);
  l.gated = g.gate.mask.words, l.gate_on_a = g.gate_on_a();
  l.gate = g.gate.activation, l.gate_mask = g.gate.mask.words, l.gate_pitch = uint32_t(g.gate.mask.pitch);
  l.row_sums = g.row_sums;
  l.columns = uint32_t(partial_columns(g));
  if (p.splits > 1)
    l.partials = static_cast<float*>(workspace);
  else
    l.bias = g.bias;
  l.n_first = g.pixels == Pixels::on_m;
  l.work = uint32_t(p.work());
  l.tiles = Divider(uint32_t(l.n_first ? p.tiles_n : p.tiles_m));
  l.other = Divider(uint32_t(l.n_first ? p.tiles_m : p.tiles_n));
  l.a_stays = p.weight_stays() && g.pixels == Pixels::on_n, l.b_stays = p.weight_stays() && g.pixels == Pixels::on_m;
  const int64_t rest = g.segments == 1 && p.splits == 1 ? g.segment[0].k.count() % p.tile_k : 0;
  l.last_depth = rest ? int(rest) : p.tile_k;
  l.shares = Divider(uint32_t(p.splits)), l.steps = int(p.steps), l.steps_per_split = int(p.steps_per_split);
  return l;
}

}  // namespace pw
