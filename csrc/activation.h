// Activations and their derivatives. One formula each serves scalars on host and device and the CPU's vectors: a type
// T needs + - * / < <= > >=, and the functions select, exp, erf and tanh found by argument.
#pragma once
#include <cmath>

#include "problem.h"

namespace pw {

template <class T>
PW_HD T select(bool condition, T yes, T no) {
  return condition ? yes : no;
}
PW_HD float exp(float x) { return ::expf(x); }
PW_HD double exp(double x) { return ::exp(x); }
PW_HD float erf(float x) { return ::erff(x); }
PW_HD double erf(double x) { return ::erf(x); }
PW_HD float tanh(float x) { return ::tanhf(x); }
PW_HD double tanh(double x) { return ::tanh(x); }

// clamp(x) = min(max(x, low), high); NaN passes, and high wins where low > high, as in torch.clamp
template <class T>
PW_HD T clamp(T x, T low, T high) {
  const T raised = select(x < low, low, x);
  return select(raised > high, high, raised);
}

// sigmoid(x) = 1 / (1 + exp(-x))
template <class T>
PW_HD T sigmoid(T x) {
  return T(1) / (T(1) + exp(T(0) - x));
}

// gelu_tanh(x) = x/2 (1 + tanh(u(x))), u(x) = sqrt(2/pi) (x + 0.044715 x^3)
template <class T>
PW_HD T gelu_tanh_inner(T x) {
  return T(0.79788456080286536) * (x + T(0.044715) * x * x * x);
}

// y = activation(z)
template <class T>
PW_HD T activate(const Activation& a, T z) {
  switch (a.kind) {
    case Act::none:
      return z;
    case Act::relu:  // z < 0 ? 0 : z, so that NaN passes
      return select(z < T(0), T(0), z);
    case Act::relu6:
      return clamp(z, T(0), T(6));
    case Act::leaky_relu:  // z > 0 ? z : slope z
      return select(z > T(0), z, z * T(a.alpha));
    case Act::silu:  // z sigmoid(z)
      return z / (T(1) + exp(T(0) - z));
    case Act::gelu:  // z/2 (1 + erf(z / sqrt 2))
      return T(0.5) * z * (T(1) + erf(z * T(0.70710678118654752)));
    case Act::gelu_tanh:
      return T(0.5) * z * (T(1) + tanh(gelu_tanh_inner(z)));
    case Act::hardswish:  // z clamp(z + 3, 0, 6) / 6
      return z * (clamp(z + T(3), T(0), T(6)) * T(1.0 / 6));
    case Act::hardsigmoid:  // clamp(z + 3, 0, 6) / 6
      return clamp(z + T(3), T(0), T(6)) * T(1.0 / 6);
    case Act::sigmoid:
      return sigmoid(z);
    case Act::tanh:
      return tanh(z);
    case Act::clamp:
      return clamp(z, T(a.alpha), T(a.beta));
  }
  return z;
}

// Calls f(y = activation(z)) with the kind decided, for loops that need not decide it again. Curves have a loop each.
template <class F>
void with_activation(const Activation& a, F f) {
  switch (a.kind) {
    case Act::silu:
      return f([](auto z) { return activate({Act::silu}, z); });
    case Act::hardswish:
      return f([](auto z) { return activate({Act::hardswish}, z); });
    case Act::sigmoid:
      return f([](auto z) { return activate({Act::sigmoid}, z); });
    case Act::gelu:
      return f([](auto z) { return activate({Act::gelu}, z); });
    case Act::gelu_tanh:
      return f([](auto z) { return activate({Act::gelu_tanh}, z); });
    default:
      return f([&](auto z) { return activate(a, z); });
  }
}

// Whether the derivative is 0 or 1 by comparisons of what was saved with 0, and for relu6 with 6.
PW_HD bool clips(const Activation& a) { return a.kind == Act::relu || a.kind == Act::relu6; }

// Whether the gradient of y = activation(z) passes as it is, where one_bit(a) holds. The others are activation_grad's
// of y = 0, and y = 1 stands for those that pass.
template <class T>
PW_HD bool passes(const Activation& a, T y) {
  if (a.kind == Act::leaky_relu) return y > T(0);
  return !(y <= T(0)) && !(a.kind == Act::relu6 && y >= T(6));  // NaN passes
}

// dz = dy activation'(saved), saved = z where saves_z(a), else y. Ties at a kink follow PyTorch's backward formulas.
template <class T>
PW_HD T activation_grad(const Activation& a, T dy, T saved) {
  const T zero(0), one(1), half(0.5);
  switch (a.kind) {
    case Act::none:
      return dy;
    case Act::relu:
      return select(saved <= zero, zero, dy);
    case Act::relu6:
      return select(saved <= zero, zero, select(saved >= T(6), zero, dy));
    case Act::leaky_relu:
      return select(saved > zero, dy, dy * T(a.alpha));
    case Act::silu: {  // s (1 + z (1 - s)), s = sigmoid(z)
      const T s = sigmoid(saved);
      return dy * s * (one + saved * (one - s));
    }
    case Act::gelu: {  // Phi(z) + z phi(z)
      const T cdf = half * (one + erf(saved * T(0.70710678118654752)));
      const T pdf = T(0.39894228040143268) * exp(T(-0.5) * saved * saved);
      return dy * (cdf + saved * pdf);
    }
    case Act::gelu_tanh: {  // (1 + t)/2 + z/2 (1 - t^2) u'(z), t = tanh(u(z))
      const T t = tanh(gelu_tanh_inner(saved));
      const T slope = T(0.79788456080286536) * (one + T(0.134145) * saved * saved);
      return dy * (half * (one + t) + half * saved * (one - t * t) * slope);
    }
    case Act::hardswish:  // 0 | z/3 + 1/2 | 1, split at -3 and 3
      return select(saved <= T(-3), zero, select(saved < T(3), dy * (saved / T(3) + half), dy));
    case Act::hardsigmoid:
      return select(saved > T(-3), select(saved < T(3), dy / T(6), zero), zero);
    case Act::sigmoid:
      return dy * (one - saved) * saved;
    case Act::tanh:
      return dy * (one - saved * saved);
    case Act::clamp:
      return select(saved >= T(a.alpha), select(saved <= T(a.beta), dy, zero), zero);
  }
  return dy;
}

}  // namespace pw
