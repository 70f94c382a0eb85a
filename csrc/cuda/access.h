// How a kernel may read and write the matrices of a product: the direction in which they are contiguous, and the bytes
// that lie together at aligned addresses.
#pragma once
#include <algorithm>

#include "../problem.h"

namespace pw {

inline int64_t element_bytes(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Bytes from one group's operands to the next group's.
struct GroupSteps {
  int64_t a[kSources] = {}, b[kSources] = {}, c = 0, z = 0, residual = 0, bias = 0, row_sums = 0;
};

// Fills `steps`; whether all groups lie at these distances.
inline bool equally_spaced(const Gemm* gemms, int64_t count, GroupSteps& steps) {
  bool equal = true;
  const auto step = [&](auto pointer_of, int64_t& bytes) {
    const auto address = [&](int64_t i) { return reinterpret_cast<int64_t>(pointer_of(gemms[i])); };
    bytes = count > 1 ? address(1) - address(0) : 0;
    for (int64_t i = 2; i < count; ++i) equal = equal && address(i) == address(0) + i * bytes;
  };
  for (int s = 0; s < gemms->segments; ++s) {
    step([s](const Gemm& g) { return g.segment[s].a.data; }, steps.a[s]);
    step([s](const Gemm& g) { return g.segment[s].b.data; }, steps.b[s]);
  }
  step([](const Gemm& g) { return g.c.data; }, steps.c);
  step([](const Gemm& g) { return g.z.data; }, steps.z);
  step([](const Gemm& g) { return g.residual.data; }, steps.residual);
  step([](const Gemm& g) { return g.bias; }, steps.bias);
  step([](const Gemm& g) { return g.row_sums; }, steps.row_sums);
  return equal;
}

// The most bytes, up to 16, that one access along `axis` may take of a matrix that `other` is the second axis of.
inline int vector_bytes(const void* data, int64_t group_step, const Axis& axis, const Steps& along, const Axis& other,
                        const Steps& across, int64_t element) {
  if (along.step[kRank - 1] != 1 && axis.size[kRank - 1] > 1) return int(element);
  const int64_t inner = axis.size[kRank - 1];
  // The addresses a vector may start at: sums of these.
  int64_t bits = reinterpret_cast<int64_t>(data) | group_step;
  for (int d = 0; d < kRank; ++d) {
    if (d < kRank - 1 && axis.size[d] > 1) bits |= along.step[d] * element;
    if (other.size[d] > 1) bits |= across.step[d] * element;
  }
  if (inner != axis.count()) bits |= inner * element;  // no vector reaches from one row of pixels into the next
  return int(std::max(element, bits ? std::min<int64_t>(16, bits & -bits) : 16));
}

struct OperandAccess {
  bool along_k = false;  // else along m or n
  int bytes = 16;
};

struct Access {
  OperandAccess a, b;
  int c = 16;  // bytes of C, z and residual, along n
};

inline Access access_of(const Gemm* gemms, int64_t count) {
  const Gemm& g = *gemms;
  const int64_t element = element_bytes(g.dtype);
  GroupSteps steps;
  equally_spaced(gemms, std::min<int64_t>(count, 2), steps);
  Access access;
  const auto contiguous = [](const Axis& axis, const Steps& s) {
    return s.step[kRank - 1] == 1 || axis.size[kRank - 1] == 1;
  };
  bool a_along_k = true, b_along_k = true;
  for (int s = 0; s < g.segments; ++s) {
    a_along_k = a_along_k && contiguous(g.segment[s].k, g.segment[s].a.col);
    b_along_k = b_along_k && contiguous(g.segment[s].k, g.segment[s].b.row);
  }
  // No kernel takes A along m and B along k: such an A is read element by element.
  access.a.along_k = a_along_k || b_along_k, access.b.along_k = b_along_k;
  for (int s = 0; s < g.segments; ++s) {
    const Segment& part = g.segment[s];
    const auto bytes = [&](const Matrix& x, int64_t step, bool along_k, const Axis& side, const Steps& of_side,
                           const Steps& of_k) {
      return along_k ? vector_bytes(x.data, step, part.k, of_k, side, of_side, element)
                     : vector_bytes(x.data, step, side, of_side, part.k, of_k, element);
    };
    access.a.bytes = std::min(access.a.bytes, bytes(part.a, steps.a[s], access.a.along_k, g.m, part.a.row, part.a.col));
    access.b.bytes = std::min(access.b.bytes, bytes(part.b, steps.b[s], access.b.along_k, g.n, part.b.col, part.b.row));
  }
  const auto result = [&](const Matrix& x, int64_t step) {
    access.c = std::min(access.c, vector_bytes(x.data, step, g.n, x.col, g.m, x.row, element));
  };
  result(g.c, steps.c);
  if (g.z.data) result(g.z, steps.z);
  if (g.residual.data) result(g.residual, steps.residual);
  if (access.c == 2 * element) access.c = int(element);  // rows where only pairs are aligned are rare: one by one
  return access;
}

}  // namespace pw
