// What happens to a sum before it is stored, shared by the kernels that finish products:
//
//     z = sum + bias + residual        y = activation(z)
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

template <class T>
PW_DEVICE void finish(const Gemm& g, const Operands<T>& to, acc_t<T> sum, int64_t bias, const Place& at) {
  if (to.bias) sum += widen(to.bias[bias * g.bias_step]);
  if (to.residual) sum += widen(to.residual[at.residual]);
  if (to.z) to.z[at.z] = narrow<T>(sum);
  to.c[at.c] = narrow<T>(activate(g.activation, sum));
}

}  // namespace pw
