// What happens to a sum before it is stored, shared by the kernels that finish products:
//
//     z = sum + bias + residual        y = activation(z)        mask = passes(y)
#pragma once
#include "../activation.h"
#include "offsets.cuh"

namespace pw {

// Where one element of C lies, and of what is combined with it.
struct OutputPlace {
  int64_t c, z, residual;
};

// A matrix of one group, so many bytes behind that of the group before.
template <class T>
PW_DEVICE T* of_group(void* data, int64_t step, int64_t group) {
  return reinterpret_cast<T*>(static_cast<char*>(data) + step * group);
}

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
    return data ? of_group<T>(data, step, group) : nullptr;
  }
};

// The activations that take more than a comparison.
template <class V>
PW_CALLED V activate_called(const Activation& a, V v) {
  return activate(a, v);
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

template <class T, int N>
PW_DEVICE void narrow_run(const Run<float, N>& v, Run<T, N>& run) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    uint32_t pairs[N / 2];
#pragma unroll
    for (int i = 0; i < N; i += 2) pairs[i / 2] = narrow_pair<T>(v.v[i], v.v[i + 1]);
    memcpy(run.v, pairs, sizeof(pairs));
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) run.v[i] = narrow<T>(v.v[i]);
  }
}

template <int N>
PW_CALLED Run<float, N> activate_run(const Activation& a, Run<float, N> run) {
#pragma unroll
  for (int i = 0; i < N; ++i) run.v[i] = activate(a, run.v[i]);
  return run;
}

template <int N>
PW_DEVICE void activate_all(const Activation& a, Run<float, N>& run) {
  if (a.kind == Act::none) return;
  if (a.kind != Act::relu) {
    if constexpr (N > 2) {
      run = activate_run(a, run);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) run.v[i] = activate_called(a, run.v[i]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) run.v[i] = select(run.v[i] < 0, 0.0f, run.v[i]);
}

// Bits of COUNT neighbouring lanes as one word.
template <int COUNT>
PW_DEVICE uint32_t join_lanes(uint32_t bits) {
#pragma unroll
  for (int other = 1; other < COUNT; other *= 2) bits |= shuffle_xor(bits, other);
  return bits;
}

// Finishes N neighbouring elements, of which the first `count` lie in C; returns their bits of the mask.
template <class T, int N>
PW_DEVICE uint32_t finish_run(const Gemm& g, const Operands<T>& to, Run<float, N> v, int count, const OutputPlace& at) {
  Run<T, N> run{};
  if (to.residual) {
    run.load(to.residual + at.residual, count);
#pragma unroll
    for (int i = 0; i < N; ++i) v.v[i] += widen(run.v[i]);
  }
  const auto store = [&](T* data) {
    narrow_run(v, run);
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
PW_DEVICE T finish(const Gemm& g, const Operands<T>& to, acc_t<T> sum, int64_t bias, const OutputPlace& at) {
  if (to.bias) sum += widen(to.bias[bias * g.bias_step]);
  if (to.residual) sum += widen(to.residual[at.residual]);
  if (to.z) to.z[at.z] = narrow<T>(sum);
  return to.c[at.c] = narrow<T>(activate_called(g.activation, sum));
}

}  // namespace pw
