// What happens to a sum before it is stored, shared by the kernels that finish products:
//
//     z = sum + bias + residual        y = activation(z)        mask = passes(y)
#pragma once
#include "../activation.h"
#include "offsets.cuh"

namespace pw {

// Where one element of C lies, and of what is combined with it.
struct Place {
  int64_t c, z, residual;
};

// The matrices of one group, in their storage type.
template <class T>
struct Operands {
  T *c, *z;
  const T *residual, *bias;

  PW_DEVICE Operands(const Gemm& g, const GroupSteps& steps, int64_t group)
      : c(moved(g.c.data, steps.c, group)),
        z(moved(g.z.data, steps.z, group)),
        residual(moved(g.residual.data, steps.residual, group)),
        bias(moved(const_cast<void*>(g.bias), steps.bias, group)) {}

  PW_DEVICE static T* moved(void* data, int64_t step, int64_t group) {
    return data ? reinterpret_cast<T*>(static_cast<char*>(data) + group * step) : nullptr;
  }
};

// The activations that take more than a comparison.
template <class V>
PW_CALLED V activate_called(const Activation& a, V v) {
  return activate(a, v);
}

template <int N>
PW_DEVICE void activate_all(const Activation& a, float (&v)[N]) {
  if (a.kind == Act::none) return;
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = a.kind == Act::relu ? select(v[i] < 0, 0.0f, v[i]) : activate_called(a, v[i]);
}

// N elements that lie together at an aligned address; at the end of a row only the first `count` are there.
template <class T, int N>
struct alignas(N * sizeof(T)) Run {
  T v[N];

  PW_DEVICE void load(const T* from, int count) {
    if (count == N) {
      *this = *reinterpret_cast<const Run*>(from);
      return;
    }
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < count) v[i] = from[i];
  }
  PW_DEVICE void store(T* to, int count) const {
    if (count == N) {
      *reinterpret_cast<Run*>(to) = *this;
      return;
    }
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < count) to[i] = v[i];
  }
};

// Bits of COUNT neighbouring lanes as one word.
template <int COUNT>
PW_DEVICE uint32_t join_lanes(uint32_t bits) {
#pragma unroll
  for (int other = 1; other < COUNT; other *= 2) bits |= shuffle_xor(bits, other);
  return bits;
}

// Finishes N neighbouring elements, of which the first `count` lie in C; returns their bits of the mask.
template <class T, int N>
PW_DEVICE uint32_t finish_run(const Gemm& g, const Operands<T>& to, float (&v)[N], int count, const Place& at) {
  Run<T, N> run{};
  if (to.residual) {
    run.load(to.residual + at.residual, count);
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] += widen(run.v[i]);
  }
  const auto store = [&](T* data) {
#pragma unroll
    for (int i = 0; i < N; ++i) run.v[i] = narrow<T>(v[i]);
    run.store(data, count);
  };
  if (to.z) store(to.z + at.z);
  activate_all(g.activation, v);
  store(to.c + at.c);
  uint32_t bits = 0;
  if (g.mask.words) {
#pragma unroll
    for (int i = 0; i < N; ++i) bits |= uint32_t(i < count && passes(g.activation, widen(run.v[i]))) << i;
  }
  return bits;
}

template <class T>
PW_DEVICE T finish(const Gemm& g, const Operands<T>& to, acc_t<T> sum, int64_t bias, const Place& at) {
  if (to.bias) sum += widen(to.bias[bias * g.bias_step]);
  if (to.residual) sum += widen(to.residual[at.residual]);
  if (to.z) to.z[at.z] = narrow<T>(sum);
  return to.c[at.c] = narrow<T>(activate_called(g.activation, sum));
}

}  // namespace pw
