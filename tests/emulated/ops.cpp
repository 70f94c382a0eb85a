// The operators of pointwise_ext on CPU tensors, with the CUDA kernels on the emulator behind them.
#include "../../csrc/ops.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../../csrc/cuda/launch.h"
#include "../../csrc/emulate/block.h"

namespace pw {
namespace {

// So few multiprocessors that small problems reach blocks with several tiles.
constexpr Tuning kTuning{/*multiprocessors=*/3, /*max_blocks=*/5};

Tuning tuning = kTuning;
bool tf32 = false;

emulate::Schedule schedule;

at::Tensor workspace(size_t bytes) { return at::empty({int64_t(bytes)}, at::kByte); }

void check(const char* error) { TORCH_CHECK(!error, error); }

void gemm(const Gemm* gemms, int64_t count, const at::Tensor&) {
  std::vector<Gemm> products(gemms, gemms + count);
  for (Gemm& g : products) g.tf32 = tf32;
  const GemmPlan plan = plan_gemm(products.data(), count, tuning);
  const at::Tensor memory = workspace(workspace_bytes(plan, products[0]));
  check(launch_gemm(products.data(), plan, memory.data_ptr(), &schedule, tuning));
}

void activation_grad(const ActivationGrad& problem, const at::Tensor&) {
  const at::Tensor memory = workspace(activation_grad_workspace_bytes(problem, tuning));
  check(launch_activation_grad(problem, memory.data_ptr(), &schedule, tuning));
}

bool gates(const std::vector<Products>& products, const ActivationGrad& pass) {
  return pw::gates(products, pass, tuning);
}

constexpr Backend kEmulated{"emulated CUDA", gemm, activation_grad, gates, /*masks=*/true};

ConvParams params(at::IntArrayRef stride, at::IntArrayRef padding, int64_t groups, c10::string_view activation,
                  double alpha, double beta) {
  return {stride, padding, groups, parse_activation(activation, alpha, beta)};
}

at::Tensor conv(PW_CONV_ARGS) {
  return conv_forward(kEmulated, inputs, weight, bias, residual,
                      params(stride, padding, groups, activation, alpha, beta));
}

std::tuple<at::Tensor, at::Tensor> conv_saved(PW_CONV_ARGS) {
  at::Tensor saved;
  at::Tensor y = conv_forward(kEmulated, inputs, weight, bias, residual,
                              params(stride, padding, groups, activation, alpha, beta), &saved);
  return {y, saved};
}

std::vector<at::Tensor> backward(PW_BACKWARD_ARGS) {
  const c10::SmallVector<bool, kSources + 3> flags(needed.begin(), needed.end());
  return conv_backward(kEmulated, grad_output, inputs, weight, saved,
                       params(stride, padding, groups, activation, alpha, beta), flags);
}

// A product (m, k) (k, n) of row-major matrices of the given dtype, as the plans see it.
Gemm product(int64_t m, int64_t n, int64_t k, at::ScalarType dtype) {
  Gemm g;
  g.dtype = parse_dtype(dtype);
  g.m.size[kRank - 1] = m, g.n.size[kRank - 1] = n;
  g.segments = 1, g.segment[0].k.size[kRank - 1] = k;
  const auto row_major = [](int64_t columns) {
    Matrix matrix;
    matrix.row.step[kRank - 1] = columns, matrix.col.step[kRank - 1] = 1;
    return matrix;
  };
  g.segment[0].a = row_major(k), g.segment[0].b = row_major(n), g.c = row_major(n);
  return g;
}

std::string explain(int64_t m, int64_t n, int64_t k, int64_t groups, at::ScalarType dtype) {
  const std::vector<Gemm> gemms(groups, product(m, n, k, dtype));
  return explain_gemm(gemms.data(), groups);
}

// Of every candidate tile: rows, columns, tiles of each, shares, steps, steps of a share, values of k of a step, pieces
// of work, bytes of workspace; the chosen one first.
std::vector<std::vector<int64_t>> plans(int64_t m, int64_t n, int64_t k, int64_t groups, at::ScalarType dtype) {
  const std::vector<Gemm> gemms(groups, product(m, n, k, dtype));
  std::vector<GemmPlan> all = gemm_plans(gemms.data(), groups, {});
  all.insert(all.begin(), plan_gemm(gemms.data(), groups));
  std::vector<std::vector<int64_t>> result;
  for (const GemmPlan& p : all)
    result.push_back({p.tile_m, p.tile_n, p.tiles_m, p.tiles_n, p.splits, p.steps, p.steps_per_split, p.tile_k,
                      p.work(), int64_t(workspace_bytes(p, gemms[0])), p.weight_blocks});
  return result;
}

// Bytes that A, B and C of the last products are read and written with would differ by alignment; this tells one's.
std::vector<int64_t> access(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
  Gemm g = product(a.size(0), b.size(1), a.size(1), a.scalar_type());
  const auto place = [](const at::Tensor& t, Matrix& matrix) {
    matrix.data = t.data_ptr();
    matrix.row.step[kRank - 1] = t.stride(0), matrix.col.step[kRank - 1] = t.stride(1);
  };
  place(a, g.segment[0].a), place(b, g.segment[0].b), place(c, g.c);
  const Access all = access_of(&g, 1);
  return {all.a.along_k, all.a.bytes, all.b.along_k, all.b.bytes, all.c};
}

void set_tuning(int64_t tile, int64_t splits, bool fma, bool use_tf32, int64_t gate, int64_t stays) {
  tuning = kTuning;
  tuning.tile = int(tile), tuning.splits = splits, tuning.fma = fma, tuning.gate = int(gate), tf32 = use_tf32;
  tuning.stays = int(stays);
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
  m.def("plans(int m, int n, int k, int groups, ScalarType dtype) -> int[][]", pw::plans);
  m.def("access(Tensor a, Tensor b, Tensor c) -> int[]", pw::access);
  m.def("set_tuning(int tile, int splits, bool fma, bool tf32, int gate=-1, int stays=0) -> ()", pw::set_tuning);
  m.def("set_schedule(bool shuffled, int seed) -> ()", pw::set_schedule);
}

TORCH_LIBRARY_IMPL(pointwise_ext_emulated, CPU, m) {
  m.impl("conv", pw::conv);
  m.impl("conv_saved", pw::conv_saved);
  m.impl("conv_backward", pw::backward);
}
