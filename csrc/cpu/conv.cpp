// The CPU backend: plans a product, shares its units out to threads, and registers the operators.
#include "../conv.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../ops.h"
#include "chunks.h"

namespace pw::cpu {
namespace {

at::Tensor workspace(int64_t elements, const at::Tensor& like) {
  return at::empty({elements}, like.options().dtype(like.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
}

// The products' biases in accumulation type, one after another; undefined where the kernels can read them as they are.
at::Tensor gather_bias(const Gemm* gemms, int64_t count, const at::Tensor& like) {
  const bool accumulated = like.scalar_type() == at::kFloat || like.scalar_type() == at::kDouble;
  if (!gemms[0].bias || (accumulated && gemms[0].bias_step == 1)) return {};
  const int64_t length = (gemms[0].bias_on_m ? gemms[0].m : gemms[0].n).count();
  at::Tensor all = workspace(count * length, like);
  const auto copy = [&](auto* to, auto read) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < length; ++j) *to++ = read(gemms[i].bias, j * gemms[i].bias_step);
  };
  const auto as = [](auto type) {
    return [](const void* p, int64_t i) { return widen(static_cast<const decltype(type)*>(p)[i]); };
  };
  switch (gemms[0].dtype) {
    case DType::f32:
      copy(all.data_ptr<float>(), as(float{}));
      break;
    case DType::f64:
      copy(all.data_ptr<double>(), as(double{}));
      break;
    case DType::f16:
      copy(all.data_ptr<float>(), as(f16{}));
      break;
    case DType::bf16:
      copy(all.data_ptr<float>(), as(bf16{}));
      break;
  }
  return all;
}

void gemm(const Gemm* gemms, int64_t count, const at::Tensor& like) {
  if (gemms->m.count() == 0 || gemms->n.count() == 0) return;
  const bool long_sum = too_long(*gemms);
  const Kernels& set = kernels(*gemms);
  c10::SmallVector<Gemm, 1> changed;
  const Tiling tiling = set.tiling(gemms->dtype);
  if (long_sum || turns(*gemms, tiling.upright_cost)) {
    for (int64_t i = 0; i < count; ++i) changed.push_back(as_computed(gemms[i], tiling.upright_cost));
    gemms = changed.data();
  }
  const Gemm& g = gemms[0];
  const int threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  Job job{gemms, make_plan(g, count, tiling, int(like.element_size()), threads)};
  const Plan& plan = job.plan;

  const at::Tensor bias = gather_bias(gemms, count, like);
  if (bias.defined()) job.bias = bias.data_ptr();
  // A long dW is summed up in C itself where C has accumulation type and rows of consecutive elements.
  at::Tensor sums;
  const bool in_place = plan.at_once || (!long_sum && plan.k_parts == 1 && like.element_size() >= 4 &&
                                         (g.c.col.step[kRank - 1] == 1 || plan.n == 1));
  if (g.pixels == Pixels::on_k && !in_place) {
    sums = workspace(count * plan.k_parts * plan.m * plan.n, like);
    job.sums = sums.data_ptr();
  }

  const int64_t units = plan.units * count, per_task = grain(plan, g, count, threads);
  if (per_task >= units)
    set.run(g.dtype, job, 0, units);
  else
    at::parallel_for(0, units, per_task, [&](int64_t begin, int64_t end) { set.run(g.dtype, job, begin, end); });
  if (job.sums)
    at::parallel_for(0, plan.m * count, ceil_div(32768, plan.n * plan.k_parts),
                     [&](int64_t begin, int64_t end) { set.merge(g.dtype, job, begin, end); });
}

template <class T>
void sum_rows(const at::Tensor& partial, int64_t rows, int64_t channels, void* db) {
  using Acc = acc_t<T>;
  const Acc* p = partial.data_ptr<Acc>();
  at::parallel_for(0, channels, ceil_div(32768, rows), [&](int64_t begin, int64_t end) {
    std::vector<double> sums(end - begin, 0.0);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = begin; c < end; ++c) sums[c - begin] += p[r * channels + c];
    for (int64_t c = begin; c < end; ++c) static_cast<T*>(db)[c] = narrow<T>(Acc(sums[c - begin]));
  });
}

void activation_grad(const ActivationGrad& problem, const at::Tensor& like) {
  const int64_t rows = grad_rows(problem), channels = problem.channels;
  const at::Tensor partial = workspace(rows * channels, like);
  const int64_t row_elements = problem.pixels.count() * channels / rows;
  const Kernels& set = kernels(problem.dtype);
  at::parallel_for(0, rows, ceil_div(32768, row_elements),
                   [&](int64_t begin, int64_t end) { set.activation_grad(problem, partial.data_ptr(), begin, end); });
  if (!problem.db) return;
  switch (problem.dtype) {
    case DType::f32:
      return sum_rows<float>(partial, rows, channels, problem.db);
    case DType::f64:
      return sum_rows<double>(partial, rows, channels, problem.db);
    case DType::f16:
      return sum_rows<f16>(partial, rows, channels, problem.db);
    case DType::bf16:
      return sum_rows<bf16>(partial, rows, channels, problem.db);
  }
}

// Sums of all parts become db.
void finish_db(const at::Tensor& sums, const Chunked& job) {
  const int64_t channels = job.pass.channels;
  const double* p = sums.data_ptr<double>();
  const auto write = [&](auto* db) {
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t part = 0; part < job.chunks.parts; ++part) sum += p[part * channels + c];
      using T = std::remove_pointer_t<decltype(db)>;
      db[c] = narrow<T>(acc_t<T>(sum));
    }
  };
  switch (job.pass.dtype) {
    case DType::f32:
      return write(static_cast<float*>(job.pass.db));
    case DType::f64:
      return write(static_cast<double*>(job.pass.db));
    case DType::f16:
      return write(static_cast<f16*>(job.pass.db));
    case DType::bf16:
      return write(static_cast<bf16*>(job.pass.db));
  }
}

bool chunks(int64_t bytes) { return forced.chunked == -1 ? bytes >= kChunkedBytes : forced.chunked > 0; }

bool chunked(const std::vector<Products>& products, const ActivationGrad& pass, const at::Tensor& like) {
  const Gemm* gemms[2 * kSources];
  int count = 0;
  for (const Products& p : products) {
    const Gemm& g = *p.gemms;
    const bool weights = g.pixels == Pixels::on_k;
    if ((weights ? g.m.count() : total_k(g)) != pass.channels) return false;  // of one group
    gemms[count++] = &g;
  }
  const int bytes = int(like.element_size());
  const int64_t weights = weights_of(gemms, count);
  if (forced.chunked == -1 && weights > kChunkedWeights) return false;
  // Nothing is derived: chunks only have dY read once, by whoever reads it.
  const bool linear = pass.activation.kind == Act::none;
  const int64_t dy_bytes = pass.pixels.count() * pass.channels * bytes;
  if (forced.chunked == -1 && linear && (count + (pass.db != nullptr) < 2 || dy_bytes < kChunkedLinear)) return false;
  const Kernels& set = count ? kernels(*gemms[0]) : kernels(pass.dtype);
  Chunked job{gemms,
              count,
              pass,
              cut(pass.pixels, pass.channels, weights, bytes, channels_inner(pass)),
              set.tiling(pass.dtype),
              bytes,
              nullptr,
              nullptr};
  const int64_t parts = job.chunks.parts;
  if (forced.chunked == -1 && parts < kLeastParts) return false;

  at::Tensor db, sums[2 * kSources];
  void* sums_data[2 * kSources] = {};
  if (pass.db)
    db = at::empty({parts * pass.channels}, like.options().dtype(at::kDouble)), job.db = db.data_ptr<double>();
  for (int i = 0; i < count; ++i)
    if (gemms[i]->pixels == Pixels::on_k)
      sums[i] = workspace(parts * gemms[i]->m.count() * gemms[i]->n.count(), like), sums_data[i] = sums[i].data_ptr();
  job.sums = sums_data;
  at::parallel_for(0, parts, ceil_div(parts, std::min<int64_t>(at::get_num_threads(), parts)),
                   [&](int64_t begin, int64_t end) { set.chunked(pass.dtype, job, begin, end); });
  for (int i = 0; i < count; ++i) {
    if (!sums_data[i]) continue;
    const Gemm dw = as_chunked(*gemms[i], *gemms[i], job.tiling);
    Job merged{&dw, chunk_plan(job, dw)};
    merged.plan.k_parts = parts, merged.sums = sums_data[i];
    at::parallel_for(0, merged.plan.m, ceil_div(32768, merged.plan.n * parts),
                     [&](int64_t begin, int64_t end) { set.merge(pass.dtype, merged, begin, end); });
  }
  if (pass.db) finish_db(db, job);
  return true;
}

const Backend kBackend{"cpu", gemm, activation_grad, nullptr, /*masks=*/false, chunks, chunked, /*samples=*/true};

at::Tensor conv(PW_CONV_ARGS) { return device_conv(kBackend, PW_CONV_PASS); }
std::tuple<at::Tensor, at::Tensor> conv_saved(PW_CONV_ARGS) { return device_conv_saved(kBackend, PW_CONV_PASS); }
void conv_out(PW_CONV_ARGS, at::Tensor& out) { device_conv_out(kBackend, PW_CONV_PASS, out); }
std::vector<at::Tensor> conv_backward(PW_BACKWARD_ARGS) { return device_conv_backward(kBackend, PW_BACKWARD_PASS); }

}  // namespace
}  // namespace pw::cpu

TORCH_LIBRARY_IMPL(pointwise_ext, CPU, m) {
  m.impl("conv", &pw::cpu::conv);
  m.impl("conv_saved", &pw::cpu::conv_saved);
  m.impl("conv_out", &pw::cpu::conv_out);
  m.impl("conv_backward", &pw::cpu::conv_backward);
}
