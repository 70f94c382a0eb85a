// One call of each CUDA kernel on the emulator, compared with plain loops. All values are small integers: sums are
// exact in any order, so that results must be equal. Each returns whether they were, and prints the first that was not.
#pragma once
#include <cmath>
#include <cstdio>
#include <functional>

#include "cuda/launch_bf16.cu"
#include "cuda/launch_f32.cu"
#include "kernel_operands.h"

namespace {

using namespace pw;

bool want_lean = false;  // of the plans that follow

bool as_wanted(const GemmPlan& plan, const Tuning& tuning) {
  if (want_lean && !plan.lean) return std::printf("the plan is not lean\n"), false;
  return tuning.stays != 1 || plan.weight_stays() || (std::printf("W does not stay\n"), false);
}

// A product of two segments with everything at its end. `by_k`: whether A and B are contiguous along k.
template <class T>
bool check_gemm(int64_t m, int64_t n, int64_t k, const Tuning& tuning, emulate::Schedule schedule, bool a_by_k = true,
                bool b_by_k = false, int64_t pitch = 1, Pixels pixels = Pixels::on_n) {
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
  g.residual = padded<T>(m, n, true, pitch);
  g.bias = filled<T>(m);
  g.activation.kind = Act::relu;
  if (!tuning.fma) g.mask = bits(m, n);
  const GemmPlan plan = plan_gemm(&g, 1, tuning);
  if (!as_wanted(plan, tuning)) return false;
  std::vector<char> workspace(workspace_bytes(plan, g));
  if (launch_gemm_as<T>(&g, plan, workspace.data(), &schedule, tuning)) return false;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float want = widen(static_cast<const T*>(g.bias)[i]) + at<T>(g.residual, i, j);
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

// A product that takes dZ of dY and what was saved, both with tails and pitches of their own, and the sums of its rows;
// `by_mask`: of a mask instead.
template <class T>
bool check_gate(int64_t m, int64_t n, int64_t k, Pixels pixels, const Tuning& tuning, emulate::Schedule schedule,
                bool a_by_k, bool b_by_k, int64_t pitch = 1, bool by_mask = false) {
  Gemm g;
  g.dtype = sizeof(T) == 2 ? DType::bf16 : DType::f32;
  g.pixels = pixels;
  g.m = axis(m), g.n = axis(n);
  Segment& s = g.segment[g.segments++];
  s.k = axis(k);
  s.a = padded<T>(m, k, a_by_k, pitch), s.b = padded<T>(k, n, !b_by_k, pitch);
  const bool on_a = g.gate_on_a();
  const int64_t other = pitch == 1 ? 16 : 1;
  const Matrix kept = on_a ? padded<T>(m, k, a_by_k, other) : padded<T>(k, n, !b_by_k, other);
  g.gate.activation = by_mask ? Activation{Act::leaky_relu, 0.5} : Activation{Act::relu6};
  const auto saved = [&](int64_t row, int64_t column) { return at<T>(kept, row, column); };
  const auto passed = [&](int64_t row, int64_t column) { return passes(g.gate.activation, saved(row, column)); };
  if (!by_mask)
    g.gate.saved = kept;
  else if (const Access access = access_of(&g, 1); on_a)
    g.gate.mask =
        access.a.along_k ? bits(m, k, passed) : bits(k, m, [&](int64_t l, int64_t i) { return passed(i, l); });
  else
    g.gate.mask =
        access.b.along_k ? bits(n, k, [&](int64_t j, int64_t l) { return passed(l, j); }) : bits(k, n, passed);
  g.c = padded<T>(m, n, true, pitch, false);
  T* row_sums = unwritten<T>(m);
  g.row_sums = row_sums;
  const GemmPlan plan = plan_gemm(&g, 1, tuning);
  if (!as_wanted(plan, tuning)) return false;
  std::vector<char> workspace(workspace_bytes(plan, g));
  if (launch_gemm_as<T>(&g, plan, workspace.data(), &schedule, tuning)) return false;
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

// dX, dW and db by one kernel, of dY and what was saved with pitches of their own; `by_mask`: of a mask instead.
bool check_backward(int64_t out, int64_t in, int64_t pixels, bool along_pixels, int64_t pitch, bool by_mask,
                    const Tuning& tuning, emulate::Schedule schedule) {
  const Matrix dy = padded<bf16>(out, pixels, along_pixels, pitch), kept = padded<bf16>(out, pixels, along_pixels, 2);
  const Matrix x = padded<bf16>(in, pixels, along_pixels, pitch), w = padded<bf16>(out, in, true, 1);
  const auto turned = [](const Matrix& m) { return Matrix{m.data, m.col, m.row}; };
  const auto saved = [&](int64_t o, int64_t p) { return at<bf16>(kept, o, p); };
  Gemm dw, dx;
  dw.dtype = dx.dtype = DType::bf16;
  dw.pixels = Pixels::on_k, dx.pixels = along_pixels ? Pixels::on_n : Pixels::on_m;
  dw.m = axis(out), dw.n = axis(in);
  dw.segment[dw.segments++] = {dy, turned(x), axis(pixels)};
  dw.c = rows(unwritten<bf16>(out * in), in);
  bf16* db = unwritten<bf16>(out);
  dw.row_sums = db;
  dw.gate.activation = by_mask ? Activation{Act::leaky_relu, 0.5} : Activation{Act::relu6};
  const auto passed = [&](int64_t o, int64_t p) { return passes(dw.gate.activation, saved(o, p)); };
  if (!by_mask)
    dw.gate.saved = kept;
  else
    dw.gate.mask = along_pixels ? bits(out, pixels, passed)
                                : bits(pixels, out, [&](int64_t p, int64_t o) { return passed(o, p); });
  dw.gate.mask.along_pixels = along_pixels;
  const Matrix to = padded<bf16>(in, pixels, along_pixels, pitch, false);
  dx.m = axis(along_pixels ? in : pixels), dx.n = axis(along_pixels ? pixels : in);
  dx.segment[dx.segments++] = along_pixels ? Segment{turned(w), dy, axis(out)} : Segment{turned(dy), w, axis(out)};
  dx.c = along_pixels ? to : turned(to);
  const BackwardPlan plan = plan_backward(dx, dw, tuning);
  std::vector<char> workspace(workspace_bytes(plan, dw));
  if (!plan.out || launch_backward_as<bf16>(dx, dw, plan, workspace.data(), &schedule, tuning)) return false;
  const auto dz = [&](int64_t o, int64_t p) {
    return activation_grad(dw.gate.activation, at<bf16>(dy, o, p), saved(o, p));
  };
  const auto sum = [](int64_t count, auto term) {
    float total = 0;
    for (int64_t i = 0; i < count; ++i) total += term(i);
    return widen(narrow<bf16>(total));
  };
  const auto right = [&](float got, float want, const char* what, int64_t i, int64_t j) {
    if (got != want)
      std::printf("backward %ldx%ldx%ld: %s[%ld, %ld] is %g, expected %g\n", long(out), long(in), long(pixels), what,
                  long(i), long(j), got, want);
    return got == want;
  };
  bool all = true;
  for (int64_t o = 0; o < out && all; ++o) {
    all = right(widen(db[o]), sum(pixels, [&](int64_t p) { return dz(o, p); }), "db", o, 0);
    for (int64_t i = 0; i < in && all; ++i)
      all =
          right(at<bf16>(dw.c, o, i), sum(pixels, [&](int64_t p) { return dz(o, p) * at<bf16>(x, i, p); }), "dW", o, i);
  }
  for (int64_t i = 0; i < in && all; ++i)
    for (int64_t p = 0; p < pixels && all; ++p)
      all = right(at<bf16>(to, i, p), sum(out, [&](int64_t o) { return dz(o, p) * at<bf16>(w, o, i); }), "dX", i, p);
  if (const int64_t inner = along_pixels ? pixels : in; inner % pitch)  // what lies between rows is not written
    for (int64_t i = 0; i < (along_pixels ? in : pixels) && all; ++i)
      all = std::isnan(along_pixels ? at<bf16>(to, i, inner) : at<bf16>(to, inner, i));
  return all;
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
// sum is split, into 37 shares so that warps share them out.
bool check_images(emulate::Schedule schedule, int64_t shares) {
  const int64_t images = 3, size = 392, in = 40, out = 72;
  const auto image = [](int64_t channels, bool fill) {
    const Matrix flat = padded<bf16>(channels, images * size, true, 1, fill);
    Matrix m{flat.data};
    m.row.step[kRank - 1] = size, m.col.step[kRank - 1] = 1, m.col.step[kRank - 2] = channels * size;
    return m;
  };
  Axis pixels;
  pixels.size[kRank - 2] = images, pixels.size[kRank - 1] = size;
  const auto value = [](const Matrix& m, int64_t channel, int64_t pixel) {
    return widen(static_cast<const bf16*>(
        m.data)[channel * m.row.step[kRank - 1] + pixel / size * m.col.step[kRank - 2] + pixel % size]);
  };
  const Matrix x = image(in, true), dy = image(out, true), y = image(out, false), w = padded<bf16>(out, in, true, 1);
  Gemm forward, dw;
  forward.dtype = dw.dtype = DType::bf16;
  forward.pixels = Pixels::on_n, dw.pixels = Pixels::on_k;
  forward.m = dw.m = axis(out), forward.n = pixels, dw.n = axis(in);
  forward.segments = dw.segments = 1;
  forward.segment[0] = {w, x, axis(in)}, dw.segment[0] = {dy, {x.data, x.col, x.row}, pixels};
  forward.c = y, dw.c = rows(unwritten<bf16>(out * in), in);
  for (const Gemm* g : {&forward, &dw}) {
    const GemmPlan plan = plan_gemm(g, 1, {3, 7, 3, g == &dw ? shares : 1});
    if (!plan.lean) return std::printf("images: the plan is not lean\n"), false;
    std::vector<char> workspace(workspace_bytes(plan, *g));
    if (launch_gemm_as<bf16>(g, plan, workspace.data(), &schedule, {3, 7})) return false;
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
