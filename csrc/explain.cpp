// The plan of a call as text: a backend that writes products down instead of computing them.
#include "explain.h"

#include <ATen/Parallel.h>

#include "cpu/kernels.h"
#include "cuda/plan.h"

namespace pw {
namespace {

thread_local std::vector<std::string> lines;

std::string size(const Gemm& g, int64_t count) {
  return (count > 1 ? std::to_string(count) + " products of " : "") + std::to_string(g.m.count()) + " x " +
         std::to_string(g.n.count()) + " x " + std::to_string(cpu::total_k(g)) + " (M x N x K, pixels on " +
         (g.pixels == Pixels::on_m ? "M" : "N") + "): ";
}

void cpu_gemm(const Gemm* gemms, int64_t count, const at::Tensor& like) {
  const cpu::Kernels& set = cpu::kernels();
  const int threads = at::get_num_threads(), bytes = int(like.element_size());
  const Gemm g = cpu::as_computed(*gemms, bytes);
  const cpu::Plan plan = cpu::make_plan(g, count, set.tiling(g.dtype), bytes, threads);
  const int64_t units = plan.units * count, tasks = cpu::ceil_div(units, cpu::grain(plan, g, count, threads));
  const cpu::Range columns = plan.columns(0);
  std::string line = size(g, count) + set.name + ", tiles of " + std::to_string(std::min(plan.tile_rows, plan.rows)) +
                     " x " + std::to_string(columns.size() - plan.dots_of(0));
  if (plan.dots) line += ", " + std::to_string(plan.dots) + " columns along K";
  line += ", " + std::to_string(units) + " units in " + std::to_string(tasks) + (tasks == 1 ? " task" : " tasks");
  if (g.pixels != gemms->pixels && g.pixels != Pixels::on_k)
    line += "; few pixels, so the product is transposed to read the weight in place";
  if (plan.streamed) line += "; the result is too large for the caches and bypasses them";
  lines.push_back(line);
}

void cuda_gemm(const Gemm* gemms, int64_t count, const at::Tensor&) {
  lines.push_back(size(*gemms, count) + explain_gemm(gemms, count));
}

void no_grad(const ActivationGrad&, const at::Tensor&) {}

}  // namespace

std::vector<std::string> explain_conv(PW_CONV_ARGS) {
  const Backend recorder{"explain", inputs[0].is_cuda() ? cuda_gemm : cpu_gemm, no_grad};
  lines.clear();
  device_conv(recorder, PW_CONV_PASS);
  return std::move(lines);
}

}  // namespace pw
