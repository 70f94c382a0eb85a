// Storage types of the kernels: 16-bit floats as plain bits (no torch). Conversions give the same bits on host and
// device, but for those of a NaN.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define PW_HD __host__ __device__ __forceinline__
#else
#define PW_HD inline __attribute__((always_inline))
#endif

namespace pw {

enum class DType : int32_t { f32, f64, f16, bf16 };

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class To, class From>
PW_HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// What a storage type is accumulated in.
template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using acc_t = typename Accumulate<T>::type;

PW_HD float widen(float v) { return v; }
PW_HD double widen(double v) { return v; }
PW_HD float widen(bf16 v) { return bit_cast<float>(uint32_t(v.bits) << 16); }
PW_HD float widen(f16 v) {
#ifdef __CUDA_ARCH__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
  return wide;
#else
  const uint32_t sign = uint32_t(v.bits & 0x8000) << 16, magnitude = v.bits & 0x7fff;
  if (magnitude >= 0x7c00) return bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);  // Inf, NaN
  // Scaling by 2^112 moves the exponent's bias from 15 to 127 and is exact, for subnormals too.
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f));
#endif
}

// Rounds to nearest even, as PyTorch does; NaN stays NaN.
template <class T>
PW_HD T narrow(acc_t<T> v);
template <>
PW_HD float narrow<float>(float v) {
  return v;
}
template <>
PW_HD double narrow<double>(double v) {
  return v;
}
template <>
PW_HD bf16 narrow<bf16>(float v) {
#ifdef __CUDA_ARCH__
  bf16 rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(v));
  return rounded;
#else
  if (v != v) return bf16{0x7fc0};
  const uint32_t u = bit_cast<uint32_t>(v);
  return bf16{uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16)};
#endif
}
template <>
PW_HD f16 narrow<f16>(float v) {
#ifdef __CUDA_ARCH__
  f16 rounded;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(v));
  return rounded;
#else
  const uint32_t u = bit_cast<uint32_t>(v), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
  if (magnitude > 0x7f800000) return f16{uint16_t(sign | 0x7e00)};   // NaN
  if (magnitude >= 0x477ff000) return f16{uint16_t(sign | 0x7c00)};  // 65520 and more round to Inf
  if (magnitude < 0x38800000) {  // below 2^-14: adding 0.5 leaves the subnormal's bits, rounded, at the bottom
    const float shifted = bit_cast<float>(magnitude) + 0.5f;
    return f16{uint16_t(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000))};
  }
  const uint32_t rebiased = magnitude - 0x38000000;
  return f16{uint16_t(sign | (rebiased + 0xfff + (rebiased >> 13 & 1)) >> 13)};
#endif
}

}  // namespace pw
