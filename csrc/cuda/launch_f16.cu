#include "launch.cuh"

namespace pw {

template const char* launch_gemm_as<f16>(const Gemm*, const GemmPlan&, void*, Stream, const Tuning&);
template const char* launch_activation_grad_as<f16>(const ActivationGrad&, void*, Stream, const Tuning&);

}  // namespace pw
