// What activations ask of a vector (activation.h finds them by its type): clamp, exp, tanh and erf.
#pragma once
#include "vec.h"

namespace pw::PW_ISA {

// What pw::clamp computes, in two instructions instead of two comparisons and two blends: where one operand is NaN they
// return the second. (maskz: gcc 12 warns of the plain ones' undefined lanes.)
PW_INLINE Vec<float> clamp(Vec<float> x, Vec<float> low, Vec<float> high) {
#if PW_BYTES == 64
  const __m512 raised = _mm512_maskz_max_ps(lanes16(16), (__m512)low.v, (__m512)x.v);
  return Vec<float>::Raw(_mm512_maskz_min_ps(lanes16(16), (__m512)high.v, raised));
#elif PW_BYTES == 32
  return Vec<float>::Raw(_mm256_min_ps((__m256)high.v, _mm256_max_ps((__m256)low.v, (__m256)x.v)));
#else
  return pw::clamp(x, low, high);
#endif
}

// exp(x) = 2^n e^r with n = round(x / ln 2): a polynomial of degree 5 on |r| <= ln(2)/2, the one of least relative
// error among those with 1 + r, 1.05e-7; of the result below 2.1e-7. Results under 2^-126 become that, and without
// AVX-512 those over 2^127.5 infinite.
PW_INLINE Vec<float> exp(Vec<float> x) {
  using V = Vec<float>;
  const V shift(12582912.0f + 127);  // 1.5 * 2^23: rounds to an integer, in the lowest bits; there plus 127 for 2^n
  const V c = clamp(x, V(-87.33654f), V(89.0f));  // ln FLT_MIN; beyond ln FLT_MAX; NaN stays
  const V shifted = c * V(1.44269504f) + shift, n = shifted - shift;
  const V r = (c - n * V(0.693359375f)) - n * V(-2.12194440e-4f);
  V p = r * V(0.008312533610f) + V(0.041890155524f);
  p = p * r + V(0.166671141982f);
  p = p * r + V(0.499992311001f);
  p = p * r + V(1);
  p = p * r + V(1);
#if PW_BYTES == 64
  return V::Raw(_mm512_maskz_scalef_ps(lanes16(16), (__m512)p.v, (__m512)n.v));
#else
  return p * V(V::Raw(V::Mask(shifted.v) << 23));
#endif
}

// tanh(x): odd polynomial for |x| < 0.625, else 1 - 2 / (exp(2|x|) + 1) with the sign of x (Cephes).
PW_INLINE Vec<float> tanh(Vec<float> x) {
  using V = Vec<float>;
  const V z = x * x;
  V p = z * V(-5.70498872745e-3f) + V(2.06390887954e-2f);
  p = p * z + V(-5.37397155531e-2f);
  p = p * z + V(1.33314422036e-1f);
  p = p * z + V(-3.33332819422e-1f);
  const V small = p * z * x + x;
  const V a = select(x < V(0), V(0) - x, x);
  const V big = V(1) - V(2) / (exp(a + a) + V(1));
  return select(a < V(0.625f), small, select(x < V(0), V(0) - big, big));
}

// erf(x) = 1 - (a1 t + ... + a5 t^5) exp(-x^2), t = 1 / (1 + 0.3275911 x) for x >= 0, odd; absolute error 1.5e-7
// (Abramowitz and Stegun 7.1.26).
PW_INLINE Vec<float> erf(Vec<float> x) {
  using V = Vec<float>;
  const V a = select(x < V(0), V(0) - x, x);
  const V t = V(1) / (V(1) + V(0.3275911f) * a);
  V p = t * V(1.061405429f) + V(-1.453152027f);
  p = p * t + V(1.421413741f);
  p = p * t + V(-0.284496736f);
  p = p * t + V(0.254829592f);
  const V y = V(1) - p * t * exp(V(0) - a * a);
  return select(x < V(0), V(0) - y, y);
}

// float64 serves checks, not speed: lane by lane.
template <class F>
PW_INLINE Vec<double> each_lane(Vec<double> x, F f) {
  for (int i = 0; i < x.size; ++i) x.v[i] = f(x.v[i]);
  return x;
}
PW_INLINE Vec<double> exp(Vec<double> x) {
  return each_lane(x, [](double v) { return ::exp(v); });
}
PW_INLINE Vec<double> tanh(Vec<double> x) {
  return each_lane(x, [](double v) { return ::tanh(v); });
}
PW_INLINE Vec<double> erf(Vec<double> x) {
  return each_lane(x, [](double v) { return ::erf(v); });
}

// An activation that is no clamp, of `count` vectors in memory: a function of its own, for its constants would take the
// accumulators' registers.
template <class Acc>
__attribute__((noinline)) void apply(const Activation& activation, Vec<Acc>* v, int count) {
  with_activation(activation, [=](auto of) {
    for (int i = 0; i < count; ++i) v[i] = of(v[i]);
  });
}

}  // namespace pw::PW_ISA
