// One call of each CUDA kernel on the emulator, compared with plain loops. All values are small integers: sums are
// exact in any order, so that results must be equal. Each returns whether they were, and prints the first that was not.
#pragma once
#include <cmath>
#include <cstdio>
#include <functional>

#include "cuda/launch_bf16.cu"
#ifdef PW_BF16_ALONE  // half of the time to compile
constexpr bool kWithFloat = false;
#else
#include "cuda/launch_f32.cu"
constexpr bool kWithFloat = true;
#endif
#include "kernel_operands.h"

namespace {

using namespace pw;

template <class T>
constexpr bool kChecked = kWithFloat || sizeof(T) == 2;

template <class T>
const char* launch(const Gemm* gemms, const GemmPlan& plan, emulate::Schedule& schedule, const Tuning& tuning) {
  std::vector<char> workspace(workspace_bytes(plan, *gemms));
  if constexpr (kChecked<T>) return launch_gemm_as<T>(gemms, plan, workspace.data(), &schedule, tuning);
  return "not compiled";
}

bool want_lean = false;  // of the plans that follow: gemm_lean, or gemm_mma

Tuning as_wanted(Tuning tuning) { return tuning.lean = want_lean, tuning; }
bool is_wanted(const GemmPlan& plan, const Tuning& tuning) {
  if (plan.lean != want_lean && !tuning.fma) return std::printf("the plan's kernel is %s\n", name(plan)), false;
  return tuning.stays != 1 || plan.weight_stays() || (std::printf("W does not stay\n"), false);
}

// A product of two segments with everything at its end. `by_k`: whether A and B are contiguous along k.
template <class T>
bool check_gemm(int64_t m, int64_t n, int64_t k, const Tuning& tuning, emulate::Schedule schedule, bool a_by_k = true,
                bool b_by_k = false, int64_t pitch = 1, Pixels pixels = Pixels::on_n, bool residual = true) {
  if (!kChecked<T>) return true;
  Gemm g;
  g.pixels = pixels;
  g.dtype = sizeof(T) == 2 ? DType::bf16 : DType::f32;
  g.m = axis(m), g.n = axis(n);
  for (int64_t part : {k / 3, k - k / 3}) {
    Segment& s = g.segment[g.segments++];
    s.k = axis(part);
    s.a = padded<T>(m, part, a_by_k, pitch), s.b = padded<T>(part, n, !b_by_k, pitch);
  }
  g.c = padded<T>(m, n, true, pitch, false);
  if (residual) g.residual = padded<T>(m, n, true, pitch);
  g.bias_on_m = pixels != Pixels::on_m;
  g.bias = filled<T>(g.bias_on_m ? m : n);
  g.activation.kind = Act::relu;
  if (!tuning.fma && (residual || sizeof(T) == 2)) g.mask = bits(m, n);
  const GemmPlan plan = plan_gemm(&g, 1, as_wanted(tuning));
  if (!is_wanted(plan, tuning)) return false;
  if (launch<T>(&g, plan, schedule, tuning)) return false;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float want = widen(static_cast<const T*>(g.bias)[g.bias_on_m ? i : j]);
      if (residual) want += at<T>(g.residual, i, j);
      for (int s = 0; s < g.segments; ++s)
        for (int64_t l = 0; l < g.segment[s].k.count(); ++l)
          want += at<T>(g.segment[s].a, i, l) * at<T>(g.segment[s].b, l, j);
      want = widen(narrow<T>(want > 0 ? want : 0));
      const bool whole = j + 1 < n || n % pitch == 0 || std::isnan(at<T>(g.c, i, n));
      const uint32_t word = g.mask.words ? g.mask.words[i * g.mask.pitch + j / 32] >> j % 32 : want > 0;
      const bool masked = (word & 1) == (want > 0) && (j + 1 < n || word < 2);  // no bits after the last column
      if (at<T>(g.c, i, j) == want && whole && masked) continue;
      std::printf("gemm %ldx%ldx%ld: C[%ld, %ld] is %g, bits %x, expected %g\n", long(m), long(n), long(k), long(i),
                  long(j), at<T>(g.c, i, j), word, want);
      return false;
    }
  return true;
}

// Groups at equal distances, each with its bias, that keep what comes before the activation.
bool check_groups(emulate::Schedule schedule, int64_t m, int64_t n, int64_t k, int64_t shares) {
  constexpr int kGroups = 3;
  const Matrix a = padded<bf16>(kGroups * m, k, true, 1), b = padded<bf16>(kGroups * k, n, true, 1);
  const Matrix c = padded<bf16>(kGroups * m, n, true, 1, false), z = padded<bf16>(kGroups * m, n, true, 1, false);
  const bf16* bias = filled<bf16>(kGroups * m);
  const auto from_row = [](const Matrix& x, int64_t row) {
    return Matrix{static_cast<bf16*>(x.data) + row * x.row.step[kRank - 1], x.row, x.col};
  };
  Gemm gemms[kGroups];
  for (int i = 0; i < kGroups; ++i) {
    Gemm& g = gemms[i];
    g.dtype = DType::bf16, g.m = axis(m), g.n = axis(n), g.segments = 1;
    g.segment[0] = {from_row(a, i * m), from_row(b, i * k), axis(k)};
    g.c = from_row(c, i * m), g.z = from_row(z, i * m), g.bias = bias + i * m, g.activation.kind = Act::relu6;
  }
  const Tuning tuning{3, 4, 0, shares};
  const GemmPlan plan = plan_gemm(gemms, kGroups, tuning);
  if (!plan.lean || launch<bf16>(gemms, plan, schedule, tuning)) return false;
  for (int64_t i = 0; i < kGroups * m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float sum = widen(bias[i]);
      for (int64_t l = 0; l < k; ++l) sum += at<bf16>(a, i, l) * at<bf16>(b, i / m * k + l, j);
      const float want = widen(narrow<bf16>(sum < 0 ? 0 : sum > 6 ? 6 : sum));
      if (at<bf16>(z, i, j) == widen(narrow<bf16>(sum)) && at<bf16>(c, i, j) == want) continue;
      return std::printf("groups: C[%ld, %ld] is %g, expected %g\n", long(i), long(j), at<bf16>(c, i, j), want), false;
    }
  return true;
}

// A product that takes dZ of dY by a mask, with tails, and the sums of its rows.
template <class T>
bool check_gate(int64_t m, int64_t n, int64_t k, Pixels pixels, const Tuning& tuning, emulate::Schedule schedule,
                bool a_by_k, bool b_by_k, int64_t pitch = 1) {
  if (!kChecked<T>) return true;
  Gemm g;
  g.dtype = sizeof(T) == 2 ? DType::bf16 : DType::f32;
  g.pixels = pixels;
  g.m = axis(m), g.n = axis(n);
  Segment& s = g.segment[g.segments++];
  s.k = axis(k);
  s.a = padded<T>(m, k, a_by_k, pitch), s.b = padded<T>(k, n, !b_by_k, pitch);
  const bool on_a = g.gate_on_a();
  const Matrix kept = on_a ? padded<T>(m, k, a_by_k, 1) : padded<T>(k, n, !b_by_k, 1);
  g.gate.activation = {Act::leaky_relu, 0.5};
  const auto saved = [&](int64_t row, int64_t column) { return at<T>(kept, row, column); };
  const auto passed = [&](int64_t row, int64_t column) { return passes(g.gate.activation, saved(row, column)); };
  if (const Access access = access_of(&g, 1); on_a)
    g.gate.mask =
        access.a.along_k ? bits(m, k, passed) : bits(k, m, [&](int64_t l, int64_t i) { return passed(i, l); });
  else
    g.gate.mask =
        access.b.along_k ? bits(n, k, [&](int64_t j, int64_t l) { return passed(l, j); }) : bits(k, n, passed);
  g.c = padded<T>(m, n, true, pitch, false);
  T* row_sums = unwritten<T>(m);
  g.row_sums = row_sums;
  const GemmPlan plan = plan_gemm(&g, 1, as_wanted(tuning));
  if (!is_wanted(plan, tuning)) return false;
  if (launch<T>(&g, plan, schedule, tuning)) return false;
  const auto gated = [&](float dy, int64_t row, int64_t column) {
    return activation_grad(g.gate.activation, dy, saved(row, column));
  };
  const auto right = [&](T got, float want, const char* what, int64_t i, int64_t j) {
    if (widen(got) == widen(narrow<T>(want))) return true;
    std::printf("gate %ldx%ldx%ld: %s[%ld, %ld] is %g, expected %g\n", long(m), long(n), long(k), what, long(i),
                long(j), widen(got), want);
    return false;
  };
  for (int64_t i = 0; i < m; ++i) {
    float rows = 0;
    for (int64_t l = 0; l < k; ++l) rows += on_a ? gated(at<T>(s.a, i, l), i, l) : at<T>(s.a, i, l);
    if (!right(row_sums[i], rows, "row_sums", i, 0)) return false;
    for (int64_t j = 0; j < n; ++j) {
      float want = 0;
      for (int64_t l = 0; l < k; ++l)
        want +=
            on_a ? gated(at<T>(s.a, i, l), i, l) * at<T>(s.b, l, j) : at<T>(s.a, i, l) * gated(at<T>(s.b, l, j), l, j);
      if (!right(narrow<T>(at<T>(g.c, i, j)), want, "C", i, j)) return false;
    }
  }
  return true;
}

bool check_activation_grad(int64_t pixels, int64_t channels, const Tuning& tuning, emulate::Schedule schedule) {
  ActivationGrad a;
  a.activation.kind = Act::relu;
  a.pixels = axis(pixels), a.channels = channels;
  a.dy = rows(filled<float>(pixels * channels), channels);
  a.saved = rows(filled<float>(pixels * channels), channels);
  a.dz = rows(unwritten<float>(pixels * channels), channels);
  float* db = unwritten<float>(channels);
  a.db = db;
  std::vector<char> workspace(workspace_bytes(plan_activation_grad(a, tuning), a));
  launch_activation_grad_as<float>(a, workspace.data(), &schedule, tuning);
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t p = 0; p < pixels; ++p) {
      const float want = at<float>(a.saved, p, c) <= 0 ? 0 : at<float>(a.dy, p, c);
      if (at<float>(a.dz, p, c) != want)
        return std::printf("dz[%ld, %ld] is %g\n", long(p), long(c), at<float>(a.dz, p, c)), false;
      sum += want;
    }
    if (db[c] != sum) return std::printf("db[%ld] is %g, expected %g\n", long(c), db[c], sum), false;
  }
  return true;
}

// Images of several channels one after another: pixels have two dimensions, along n (forward) and along k (dW), whose
// sum is split, into 38 shares so that warps share them out.
bool check_images(emulate::Schedule schedule, int64_t shares, int64_t size = 392) {
  const int64_t images = 3, in = 40, out = 72;
  const auto image = [size](int64_t channels, bool fill) {
    const Matrix flat = padded<bf16>(channels, images * size, true, 1, fill);
    Matrix m{flat.data};
    m.row.step[kRank - 1] = size, m.col.step[kRank - 1] = 1, m.col.step[kRank - 2] = channels * size;
    return m;
  };
  Axis pixels;
  pixels.size[kRank - 2] = images, pixels.size[kRank - 1] = size;
  const auto value = [size](const Matrix& m, int64_t channel, int64_t pixel) {
    return widen(static_cast<const bf16*>(
        m.data)[channel * m.row.step[kRank - 1] + pixel / size * m.col.step[kRank - 2] + pixel % size]);
  };
  const Matrix x = image(in, true), dy = image(out, true), y = image(out, false), w = padded<bf16>(out, in, true, 1);
  // In channels_last, each image followed by 8 pixels that are not read.
  Matrix x_last = padded<bf16>(images * (size + 8), in, true, 1),
         y_last = padded<bf16>(images * size, out, true, 1, false);
  x_last.row.step[kRank - 2] = (size + 8) * in, y_last.row.step[kRank - 2] = size * out;
  Gemm forward, dw, last;
  forward.dtype = dw.dtype = last.dtype = DType::bf16;
  last.pixels = Pixels::on_m, last.m = pixels, last.n = axis(out), last.segments = 1, last.c = y_last;
  last.segment[0] = {x_last, {w.data, w.col, w.row}, axis(in)};
  forward.pixels = Pixels::on_n, dw.pixels = Pixels::on_k;
  forward.m = dw.m = axis(out), forward.n = pixels, dw.n = axis(in);
  forward.segments = dw.segments = 1;
  forward.segment[0] = {w, x, axis(in)}, dw.segment[0] = {dy, {x.data, x.col, x.row}, pixels};
  forward.c = y, dw.c = rows(unwritten<bf16>(out * in), in);
  for (const Gemm* g : {&forward, &dw, &last}) {
    const GemmPlan plan = plan_gemm(g, 1, {3, 7, 3, g == &dw ? shares : 1});
    if (!plan.lean) return std::printf("images: the plan is not lean\n"), false;
    if (launch<bf16>(g, plan, schedule, {3, 7})) return false;
  }
  const auto right = [](float got, float want, const char* what, int64_t i, int64_t j) {
    if (got == widen(narrow<bf16>(want))) return true;
    std::printf("images: %s[%ld, %ld] is %g, expected %g\n", what, long(i), long(j), got, want);
    return false;
  };
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t p = 0; p < images * size; ++p) {
      float sum = 0;
      for (int64_t i = 0; i < in; ++i) sum += at<bf16>(w, o, i) * value(x, i, p);
      if (!right(value(y, o, p), sum, "y", o, p)) return false;
      sum = 0;
      for (int64_t i = 0; i < in; ++i) sum += at<bf16>(w, o, i) * at<bf16>(x_last, p / size * (size + 8) + p % size, i);
      if (!right(at<bf16>(y_last, p, o), sum, "y in channels_last", p, o)) return false;
    }
    for (int64_t i = 0; i < in; ++i) {
      float sum = 0;
      for (int64_t p = 0; p < images * size; ++p) sum += value(dy, o, p) * value(x, i, p);
      if (!right(at<bf16>(dw.c, o, i), sum, "dW", o, i)) return false;
    }
  }
  return true;
}

}  // namespace
