// The CUDA backend: workspace, current stream and launch checks around the kernels, and the operators' registration.
#include "../conv.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <torch/library.h>

#include "../ops.h"
#include "launch.h"

namespace pw::cuda {
namespace {

at::Tensor workspace(size_t bytes, const at::Tensor& like) {
  return bytes ? at::empty({int64_t(bytes)}, like.options().dtype(at::kByte)) : at::Tensor();
}

void* data(const at::Tensor& workspace) { return workspace.defined() ? workspace.data_ptr() : nullptr; }

void check_launch(const char* error, const at::Tensor& like) {
  TORCH_CHECK(!error, "pointwise_conv: a CUDA kernel did not start on ", like.device(), ": ", error,
              "; `python -m pointwise_ext` tells which architectures the extension was built for");
}

void* stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

// What a block may have on this GPU.
int64_t shared_bytes(const at::Tensor& like) {
  int bytes = 0;
  const auto asked = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, like.get_device());
  return asked == cudaSuccess ? bytes : 0;
}

void gemm(const Gemm* gemms, int64_t count, const at::Tensor& like) {
  const GemmPlan plan = fitted(plan_gemm(gemms, count, forced_tuning), *gemms, shared_bytes(like));
  const at::Tensor memory = workspace(workspace_bytes(plan, *gemms), like);
  check_launch(launch_gemm(gemms, plan, data(memory), stream(), forced_tuning), like);
}

void activation_grad(const ActivationGrad& problem, const at::Tensor& like) {
  const at::Tensor memory = workspace(activation_grad_workspace_bytes(problem, forced_tuning), like);
  check_launch(launch_activation_grad(problem, data(memory), stream(), forced_tuning), like);
}

bool gates(const std::vector<Products>& products, const ActivationGrad& pass) {
  return pw::gates(products, pass, forced_tuning);
}

constexpr Backend kBackend{"cuda", gemm, activation_grad, gates, /*masks=*/true};

// Without the guard a kernel would start on the current device, whichever that is.
at::Tensor conv(PW_CONV_ARGS) {
  const c10::DeviceGuard guard(weight.device());
  return device_conv(kBackend, PW_CONV_PASS);
}

std::tuple<at::Tensor, at::Tensor> conv_saved(PW_CONV_ARGS) {
  const c10::DeviceGuard guard(weight.device());
  return device_conv_saved(kBackend, PW_CONV_PASS);
}

void conv_out(PW_CONV_ARGS, at::Tensor& out) {
  const c10::DeviceGuard guard(weight.device());
  device_conv_out(kBackend, PW_CONV_PASS, out);
}

std::vector<at::Tensor> conv_backward(PW_BACKWARD_ARGS) {
  const c10::DeviceGuard guard(weight.device());
  return device_conv_backward(kBackend, PW_BACKWARD_PASS);
}

}  // namespace
}  // namespace pw::cuda

TORCH_LIBRARY_IMPL(pointwise_ext, CUDA, m) {
  m.impl("conv", &pw::cuda::conv);
  m.impl("conv_saved", &pw::cuda::conv_saved);
  m.impl("conv_out", &pw::cuda::conv_out);
  m.impl("conv_backward", &pw::cuda::conv_backward);
}
