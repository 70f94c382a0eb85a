// The plan of a call as text: a backend that writes products down instead of computing them.
#include "explain.h"

#include <ATen/Parallel.h>

#include "cpu/kernels.h"
#include "cuda/plan_backward.h"

namespace pw {
namespace {

thread_local std::vector<std::string> lines;
thread_local std::vector<Prediction> predictions;
thread_local bool allow_tf32 = false;

std::string size(const Gemm& g, int64_t count) {
  return (count > 1 ? std::to_string(count) + " products of " : "") + std::to_string(g.m.count()) + " x " +
         std::to_string(g.n.count()) + " x " + std::to_string(cpu::total_k(g)) + " (M x N x K, pixels on " +
         (g.pixels == Pixels::on_m ? "M" : "N") + "): ";
}

void cpu_gemm(const Gemm* gemms, int64_t count, const at::Tensor& like) {
  const cpu::Kernels& set = cpu::kernels(*gemms);
  const int threads = at::get_num_threads(), bytes = int(like.element_size());
  const cpu::Tiling tiling = set.tiling(gemms->dtype);
  const Gemm g = cpu::as_computed(*gemms, tiling.upright_cost);
  const cpu::Plan plan = cpu::make_plan(g, count, tiling, bytes, threads);
  const int64_t units = plan.units * count, tasks = cpu::ceil_div(units, cpu::grain(plan, g, count, threads));
  const cpu::Range columns = plan.columns(0);
  std::string line = size(g, count) + set.name + ", tiles of " + std::to_string(std::min(plan.tile_rows, plan.rows)) +
                     " x " + std::to_string(columns.size() - plan.dots_of(0));
  if (plan.dots) line += ", " + std::to_string(plan.dots) + " columns along K";
  if (plan.beside > 1) line += ", up to " + std::to_string(plan.beside) + " beside one another";
  if (plan.piece) line += ", K in pieces of " + std::to_string(plan.piece);
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

std::vector<Gemm> on_cuda(const Gemm* gemms, int64_t count) {
  std::vector<Gemm> products(gemms, gemms + count);
  for (Gemm& g : products) g.tf32 = allow_tf32 && g.dtype == DType::f32;
  return products;
}

void predicted_gemm(const Gemm* gemms, int64_t count, const at::Tensor&) {
  const std::vector<Gemm> products = on_cuda(gemms, count);
  const Gemm& g = products[0];
  const GemmPlan p = plan_gemm(products.data(), count, forced_tuning);
  const Traffic moved = traffic(g, p);
  const std::string gate = g.gate.present() ? " of dY by bits" : "", rows = g.row_sums ? " with db" : "",
                    stays = p.weight_stays() ? ", W stays" : "";
  const std::string tile = std::to_string(p.tile_m) + "x" + std::to_string(p.tile_n) + gate + rows + stays;
  Prediction kernel{name(p) + std::string(" ") + tile,
                    g.m.count(),
                    g.n.count(),
                    cpu::total_k(g),
                    p.blocks(),
                    moved.memory,
                    moved.operands,
                    p.microseconds};
  if (p.splits > 1) {
    // The sum of the shares is a launch of its own, which alone reads and writes partial sums.
    Prediction sum{"reduce",
                   0,
                   0,
                   0,
                   divide_up(count * g.m.count() * reduce_threads(g, partial_columns(g)), reduce_width(p.splits)),
                   0,
                   moved.partials,
                   reduce_us(g, p, moved)};
    kernel.kernel += ", " + std::to_string(p.splits) + " shares of K";
    kernel.microseconds -= sum.microseconds;
    predictions.push_back(kernel);
    predictions.push_back(sum);
    return;
  }
  predictions.push_back(kernel);
}

void predicted_grad(const ActivationGrad& a, const at::Tensor&) {
  predictions.push_back(
      {"activation_backward", 0, 0, 0, plan_activation_grad(a).work(), memory_bytes(a), 0, predict(a)});
}

bool predicted_gates(const std::vector<Products>& products, const ActivationGrad& pass) {
  std::vector<std::vector<Gemm>> gemms;
  std::vector<Products> computed;
  for (const Products& p : products) {
    gemms.push_back(on_cuda(p.gemms, p.count));
    computed.push_back({gemms.back().data(), p.count});
  }
  return gates(computed, pass, forced_tuning);
}

}  // namespace

std::vector<std::string> explain_conv(PW_CONV_ARGS) {
  const Backend recorder{"explain", inputs[0].is_cuda() ? cuda_gemm : cpu_gemm, no_grad};
  lines.clear();
  device_conv(recorder, PW_CONV_PASS);
  return std::move(lines);
}

std::vector<Prediction> predict_cuda(PW_CONV_ARGS, bool tf32, const std::vector<bool>& gradients) {
  const Backend silent{"explain", [](const Gemm*, int64_t, const at::Tensor&) {}, no_grad, nullptr, /*masks=*/true};
  const Backend recorder{"predict", predicted_gemm, predicted_grad, predicted_gates, /*masks=*/true};
  predictions.clear(), allow_tf32 = tf32;
  if (gradients.empty()) {
    device_conv(recorder, PW_CONV_PASS);
  } else {
    TORCH_CHECK(gradients.size() == inputs.size() + 2, "gradients: got ", gradients.size(), ", expected ",
                inputs.size() + 2, ", of each input, weight and bias");
    const auto [y, saved] = device_conv_saved(silent, PW_CONV_PASS);
    c10::List<bool> needed;
    for (const bool wanted : gradients) needed.push_back(wanted);
    needed.push_back(false);
    device_conv_backward(recorder, y, inputs, weight, saved, stride, padding, groups, activation, alpha, beta, needed);
  }
  return std::move(predictions);
}

}  // namespace pw
