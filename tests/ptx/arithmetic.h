// Instructions that compute with registers alone.
#pragma once
#include <algorithm>
#include <cfenv>
#include <cmath>

#include "thread.h"

namespace ptx {

// Arithmetic

template <class T, class Run>
void binary(Thread* t, const Instruction& i) {
  set<T>(*t, i.to[0], T(Run()(get<T>(*t, i.of[0]), get<T>(*t, i.of[1]))));
}
template <class T, class Run>
void unary(Thread* t, const Instruction& i) {
  set<T>(*t, i.to[0], T(Run()(get<T>(*t, i.of[0]))));
}
template <class Run>
Step binary_of(Type type) {
  switch (type) {
    case Type::u16:
    case Type::b16:
      return binary<uint16_t, Run>;
    case Type::s16:
      return binary<int16_t, Run>;
    case Type::u32:
    case Type::b32:
      return binary<uint32_t, Run>;
    case Type::s32:
      return binary<int32_t, Run>;
    case Type::u64:
    case Type::b64:
      return binary<uint64_t, Run>;
    case Type::s64:
      return binary<int64_t, Run>;
    case Type::f32:
      return binary<float, Run>;
    case Type::f64:
      return binary<double, Run>;
    case Type::pred:
      return binary<bool, Run>;
    default:
      return nullptr;
  }
}
#define PTX_BINARY(Name, ...)      \
  struct Name {                    \
    template <class T>             \
    T operator()(T a, T b) const { \
      __VA_ARGS__;                 \
    }                              \
  };
PTX_BINARY(Add, return T(a + b))
PTX_BINARY(Sub, return T(a - b))
PTX_BINARY(Mul, return T(a * b))
PTX_BINARY(Div, return T(a / b))
PTX_BINARY(Min, return a != a ? b : b != b || a < b ? a : b)
PTX_BINARY(Max, return a != a ? b : b != b || a > b ? a : b)
PTX_BINARY(CopySign, return T(std::copysign(b, a)))
PTX_BINARY(Rem, if constexpr (std::is_integral_v<T>) return T(a % b); return a)
PTX_BINARY(And, if constexpr (std::is_integral_v<T>) return T(a & b); return a)
PTX_BINARY(Or, if constexpr (std::is_integral_v<T>) return T(a | b); return a)
PTX_BINARY(Xor, if constexpr (std::is_integral_v<T>) return T(a ^ b); return a)
#undef PTX_BINARY

template <class T>
void shift_left(Thread* t, const Instruction& i) {
  const auto by = get<uint32_t>(*t, i.of[1]);
  set<T>(*t, i.to[0], by >= sizeof(T) * 8 ? T(0) : T(get<T>(*t, i.of[0]) << by));
}
template <class T>
void shift_right(Thread* t, const Instruction& i) {
  const uint32_t by = std::min<uint32_t>(get<uint32_t>(*t, i.of[1]), sizeof(T) * 8);
  const T a = get<T>(*t, i.of[0]);
  set<T>(*t, i.to[0], by == sizeof(T) * 8 ? T(a < 0 ? -1 : 0) : T(a >> by));
}
template <class T, class Wide>
void multiply_wide(Thread* t, const Instruction& i) {
  set<Wide>(*t, i.to[0], Wide(get<T>(*t, i.of[0])) * Wide(get<T>(*t, i.of[1])));
}
template <class T>
void multiply_add(Thread* t, const Instruction& i) {
  set<T>(*t, i.to[0], T(get<T>(*t, i.of[0]) * get<T>(*t, i.of[1]) + get<T>(*t, i.of[2])));
}
template <class T>
void fused(Thread* t, const Instruction& i) {
  const volatile T a = get<T>(*t, i.of[0]), b = get<T>(*t, i.of[1]), c = get<T>(*t, i.of[2]);
  set<T>(*t, i.to[0], std::fma(T(a), T(b), T(c)));
}
inline void fused_down(Thread* t, const Instruction& i) {
  std::fesetround(FE_DOWNWARD);
  fused<float>(t, i);
  std::fesetround(FE_TONEAREST);
}
template <class T>
void insert_bits(Thread* t, const Instruction& i) {
  const T a = get<T>(*t, i.of[0]), b = get<T>(*t, i.of[1]);
  const auto at = get<uint32_t>(*t, i.of[2]), count = get<uint32_t>(*t, i.of[3]);
  const T mask = T((count >= sizeof(T) * 8 ? ~T(0) : (T(1) << count) - 1) << at);
  set<T>(*t, i.to[0], T((b & ~mask) | (T(a << at) & mask)));
}
struct Negative {
  template <class T>
  T operator()(T a) const {
    return T(-a);
  }
};
struct Absolute {
  template <class T>
  T operator()(T a) const {
    return std::abs(a);
  }
};
struct Complement {
  template <class T>
  T operator()(T a) const {
    return T(~a);
  }
  bool operator()(bool a) const { return !a; }
};
struct Same {
  bool operator()(bool a) const { return a; }
};
struct Reciprocal {
  template <class T>
  T operator()(T a) const {
    return 1 / a;
  }
};
struct PowerOfTwo {
  float operator()(float a) const { return std::exp2(a); }
};

// Of two 16-bit floats at once; NaN if either is.
template <float (*WIDEN)(uint16_t)>
void max_pairs(Thread* t, const Instruction& i) {
  const auto a = get<uint32_t>(*t, i.of[0]), b = get<uint32_t>(*t, i.of[1]);
  uint32_t all = 0;
  for (int at = 0; at < 32; at += 16) {
    const auto x = uint16_t(a >> at), y = uint16_t(b >> at);
    const float v = WIDEN(x), w = WIDEN(y);
    all |= uint32_t(v != v || w != w ? 0x7fff : v > w ? x : y) << at;
  }
  set<uint32_t>(*t, i.to[0], all);
}

}  // namespace ptx
