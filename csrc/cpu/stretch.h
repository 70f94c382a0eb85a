// How k is divided where operands change their step: between inputs, rows and images.
#pragma once
#include "plan.h"

namespace pw::PW_ISA {

constexpr int kStrips = 16;  // stretches that one tile takes
// Values of k added up in one register: the error of a longer running sum would pass twice that of PyTorch's, which
// blocks its sums too.
constexpr int64_t kLongestSum = 256;

// A stretch of k along which both operands advance by a constant step.
struct Stretch {
  int segment;
  int64_t k, a_offset, b_offset;  // length; where it starts in A and B
};

// The next stretches from a position on, each at most `longest` and all together at most `most` values of k.
inline int next_stretches(const Gemm& g, int& segment, int64_t& position, int64_t longest, int64_t most, Stretch* out) {
  int count = 0;
  for (int64_t left = most; segment < g.segments && left > 0 && count < kStrips;) {
    const Segment& s = g.segment[segment];
    const int64_t total = s.k.count(), inner = s.k.size[kRank - 1];
    if (position < total) {
      const int64_t length = std::min({longest, left, inner - position % inner, total - position});
      out[count++] = {segment, length, offset(s.k, s.a.col, position), offset(s.k, s.b.row, position)};
      position += length, left -= length;
    }
    if (position >= total) ++segment, position = 0;
  }
  return count;
}

}  // namespace pw::PW_ISA
