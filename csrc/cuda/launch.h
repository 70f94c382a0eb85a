// Starts the kernels: plain data in, no torch, one signature for the device and for the emulator. Each function returns
// null, or what went wrong with the launch; it does not wait for the kernels.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../problem.h"
#include "plan_backward.h"

namespace pw {

using Stream = void*;  // cudaStream_t on the device, const emulate::Schedule* in the emulator

// `plan.groups` products of equal shape and strides at equal distances in memory, as the groups of a convolution are,
// with a plan of plan_gemm() and as many bytes of workspace as workspace_bytes() says.
const char* launch_gemm(const Gemm* gemms, const GemmPlan& plan, void* workspace, Stream stream,
                        const Tuning& tuning = {});

size_t activation_grad_workspace_bytes(const ActivationGrad& problem, const Tuning& tuning = {});
const char* launch_activation_grad(const ActivationGrad& problem, void* workspace, Stream stream,
                                   const Tuning& tuning = {});

// The same for one storage type; launch_<dtype>.cu holds its kernels.
template <class T>
const char* launch_gemm_as(const Gemm* gemms, const GemmPlan& plan, void* workspace, Stream stream,
                           const Tuning& tuning);
template <class T>
const char* launch_activation_grad_as(const ActivationGrad& problem, void* workspace, Stream stream,
                                      const Tuning& tuning);

}  // namespace pw
