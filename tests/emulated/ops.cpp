// The operators of pointwise_ext on CPU tensors, with the CUDA kernels on the emulator behind them.
#include "../../csrc/ops.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../../csrc/cuda/launch.h"
#include "../../csrc/emulate/block.h"

namespace pw {
namespace {

// So little fills the emulated GPU that small problems reach large tiles, split sums and blocks with several tiles.
constexpr Tuning kTuning{/*filling_blocks=*/6, /*split_steps=*/2, /*max_blocks=*/5};

emulate::Schedule schedule;

at::Tensor workspace(size_t bytes) { return at::empty({int64_t(bytes)}, at::kByte); }

void check(const char* error) { TORCH_CHECK(!error, error); }

void gemm(const Gemm* gemms, int64_t count, const at::Tensor&) {
  const at::Tensor memory = workspace(gemm_workspace_bytes(gemms, count, kTuning));
  check(launch_gemm(gemms, count, memory.data_ptr(), &schedule, kTuning));
}

void activation_grad(const ActivationGrad& problem, const at::Tensor&) {
  const at::Tensor memory = workspace(activation_grad_workspace_bytes(problem, kTuning));
  check(launch_activation_grad(problem, memory.data_ptr(), &schedule, kTuning));
}

constexpr Backend kEmulated{"emulated CUDA", gemm, activation_grad};

ConvParams params(at::IntArrayRef stride, at::IntArrayRef padding, int64_t groups, c10::string_view activation,
                  double alpha, double beta) {
  return {stride, padding, groups, parse_activation(activation, alpha, beta)};
}

at::Tensor conv(PW_CONV_ARGS) {
  return conv_forward(kEmulated, inputs, weight, bias, residual,
                      params(stride, padding, groups, activation, alpha, beta));
}

std::tuple<at::Tensor, at::Tensor> conv_saved(PW_CONV_ARGS) {
  at::Tensor z;
  at::Tensor y = conv_forward(kEmulated, inputs, weight, bias, residual,
                              params(stride, padding, groups, activation, alpha, beta), &z);
  return {y, z};
}

std::vector<at::Tensor> backward(PW_BACKWARD_ARGS) {
  const c10::SmallVector<bool, kSources + 3> flags(needed.begin(), needed.end());
  return conv_backward(kEmulated, grad_output, inputs, weight, saved,
                       params(stride, padding, groups, activation, alpha, beta), flags);
}

// A product (m, k) (k, n) of the given dtype, as the plans see it.
Gemm product(int64_t m, int64_t n, int64_t k, at::ScalarType dtype) {
  Gemm g;
  g.dtype = parse_dtype(dtype);
  g.m.size[kRank - 1] = m, g.n.size[kRank - 1] = n;
  g.segments = 1, g.segment[0].k.size[kRank - 1] = k;
  return g;
}

std::string explain(int64_t m, int64_t n, int64_t k, int64_t groups, at::ScalarType dtype) {
  return explain_gemm(product(m, n, k, dtype), groups);
}

std::vector<int64_t> plan(int64_t m, int64_t n, int64_t k, int64_t groups, at::ScalarType dtype) {
  const Gemm g = product(m, n, k, dtype);
  const GemmPlan p = plan_gemm(g, groups);
  return {p.tile, p.tiles_m, p.tiles_n, p.splits, p.steps, p.steps_per_split, p.work(), int64_t(workspace_bytes(p, g))};
}

void set_schedule(bool shuffled, int64_t seed) { schedule = {shuffled, uint32_t(seed)}; }

}  // namespace
}  // namespace pw

TORCH_LIBRARY(pointwise_ext_emulated, m) {
#define CONV_ARGUMENTS                                                                             \
  "(Tensor[] inputs, Tensor weight, Tensor? bias, Tensor? residual, int[] stride, int[] padding, " \
  "int groups, str activation, float alpha, float beta) -> "
  m.def("conv" CONV_ARGUMENTS "Tensor");
  m.def("conv_saved" CONV_ARGUMENTS "(Tensor, Tensor)");
  m.def(
      "conv_backward(Tensor grad_output, Tensor[] inputs, Tensor weight, Tensor? saved, int[] stride, int[] padding, "
      "int groups, str activation, float alpha, float beta, bool[] needed) -> Tensor[]");
  m.def("explain(int m, int n, int k, int groups, ScalarType dtype) -> str", pw::explain);
  m.def("plan(int m, int n, int k, int groups, ScalarType dtype) -> int[]", pw::plan);
  m.def("set_schedule(bool shuffled, int seed) -> ()", pw::set_schedule);
}

TORCH_LIBRARY_IMPL(pointwise_ext_emulated, CPU, m) {
  m.impl("conv", pw::conv);
  m.impl("conv_saved", pw::conv_saved);
  m.impl("conv_backward", pw::backward);
}
