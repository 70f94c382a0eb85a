#include "launch.h"

namespace pw {
namespace {

// Calls run(T{}) with the storage type of this dtype.
template <class Run>
auto with_dtype(DType dtype, Run run) {
  switch (dtype) {
    case DType::f32:
      return run(float{});
    case DType::f64:
      return run(double{});
    case DType::f16:
      return run(f16{});
    case DType::bf16:
      break;
  }
  return run(bf16{});
}

}  // namespace

const char* launch_gemm(const Gemm* gemms, const GemmPlan& plan, void* workspace, Stream stream, const Tuning& tuning) {
  return with_dtype(gemms->dtype,
                    [&](auto zero) { return launch_gemm_as<decltype(zero)>(gemms, plan, workspace, stream, tuning); });
}

size_t activation_grad_workspace_bytes(const ActivationGrad& problem, const Tuning& tuning) {
  return workspace_bytes(plan_activation_grad(problem, tuning), problem);
}

const char* launch_activation_grad(const ActivationGrad& problem, void* workspace, Stream stream,
                                   const Tuning& tuning) {
  return with_dtype(problem.dtype, [&](auto zero) {
    return launch_activation_grad_as<decltype(zero)>(problem, workspace, stream, tuning);
  });
}

}  // namespace pw
