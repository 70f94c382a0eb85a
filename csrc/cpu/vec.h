// A vector of kBytes. The files vec*.h alone know an instruction set's vectors. The units isa_*.cpp define PW_ISA (a
// namespace, so that each set has functions of its own), PW_BYTES, and switch the compiler to the set before they
// include this.
#pragma once
#include <cstdint>

#include "../activation.h"

#define PW_INLINE inline __attribute__((always_inline))

namespace pw::PW_ISA {

constexpr int kBytes = PW_BYTES;

template <class T>
struct Int {
  using type = int32_t;
};
template <>
struct Int<double> {
  using type = int64_t;
};

template <class T>
struct Vec {
  static constexpr int size = kBytes / int(sizeof(T));
  typedef T Raw __attribute__((vector_size(kBytes)));
  typedef typename Int<T>::type Mask __attribute__((vector_size(kBytes)));
  Raw v;

  Vec() = default;
  PW_INLINE Vec(Raw raw) : v(raw) {}
  PW_INLINE explicit Vec(double scalar) : v(Raw{} + T(scalar)) {}
  PW_INLINE explicit Vec(float scalar) : v(Raw{} + T(scalar)) {}
  PW_INLINE explicit Vec(int scalar) : v(Raw{} + T(scalar)) {}

  friend PW_INLINE Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend PW_INLINE Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend PW_INLINE Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend PW_INLINE Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  friend PW_INLINE Mask operator<(Vec a, Vec b) { return a.v < b.v; }
  friend PW_INLINE Mask operator<=(Vec a, Vec b) { return a.v <= b.v; }
  friend PW_INLINE Mask operator>(Vec a, Vec b) { return a.v > b.v; }
  friend PW_INLINE Mask operator>=(Vec a, Vec b) { return a.v >= b.v; }
  friend PW_INLINE Mask operator==(Vec a, Vec b) { return a.v == b.v; }
  friend PW_INLINE Vec select(Mask m, Vec yes, Vec no) { return m ? yes.v : no.v; }
};

// Loads and stores of n lanes, 0 < n <= size; the other lanes are zero. Storage of 16 bits is widened and rounded.
template <class T>
PW_INLINE Vec<acc_t<T>> load(const T* p, int n) {
  Vec<acc_t<T>> r(0);
  if (sizeof(T) == sizeof(acc_t<T>) && n == r.size) {
    memcpy(&r.v, p, kBytes);
    return r;
  }
  acc_t<T> lanes[r.size] = {};
  for (int i = 0; i < n; ++i) lanes[i] = widen(p[i]);
  memcpy(&r.v, lanes, kBytes);
  return r;
}

template <class T>
PW_INLINE void store(T* p, Vec<acc_t<T>> v, int n) {
  if (sizeof(T) == sizeof(acc_t<T>) && n == v.size) {
    memcpy(p, &v.v, kBytes);
    return;
  }
  acc_t<T> lanes[v.size];
  memcpy(lanes, &v.v, kBytes);
  for (int i = 0; i < n; ++i) p[i] = narrow<T>(lanes[i]);
}

#if PW_BYTES == 64
PW_INLINE __mmask16 lanes16(int n) { return __mmask16((1u << n) - 1); }
PW_INLINE __mmask8 lanes8(int n) { return __mmask8((1u << n) - 1); }
template <>
PW_INLINE Vec<float> load(const float* p, int n) {
  return Vec<float>((Vec<float>::Raw)_mm512_maskz_loadu_ps(lanes16(n), p));
}
template <>
PW_INLINE Vec<double> load(const double* p, int n) {
  return Vec<double>((Vec<double>::Raw)_mm512_maskz_loadu_pd(lanes8(n), p));
}
template <>
PW_INLINE Vec<float> load(const f16* p, int n) {
  return Vec<float>((Vec<float>::Raw)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes16(n), p)));
}
template <>
PW_INLINE Vec<float> load(const bf16* p, int n) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes16(n), p));
  return Vec<float>((Vec<float>::Raw)_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
}
template <>
PW_INLINE void store(float* p, Vec<float> v, int n) {
  _mm512_mask_storeu_ps(p, lanes16(n), (__m512)v.v);
}
template <>
PW_INLINE void store(double* p, Vec<double> v, int n) {
  _mm512_mask_storeu_pd(p, lanes8(n), (__m512d)v.v);
}
// Lanes in 16 bits. bf16 is rounded to nearest even in integer arithmetic, as narrow<bf16> does: vcvtneps2bf16 would
// flush subnormals.
PW_INLINE __m256i narrowed(const f16*, Vec<float> v) { return _mm512_cvtps_ph((__m512)v.v, _MM_FROUND_TO_NEAREST_INT); }
PW_INLINE __m256i narrowed(const bf16*, Vec<float> v) {
  const __m512i u = _mm512_castps_si512((__m512)v.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v.v, (__m512)v.v, _CMP_UNORD_Q);
  r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc0));
  return _mm512_cvtepi32_epi16(r);
}
template <>
PW_INLINE void store(f16* p, Vec<float> v, int n) {
  _mm256_mask_storeu_epi16(p, lanes16(n), narrowed(p, v));
}
template <>
PW_INLINE void store(bf16* p, Vec<float> v, int n) {
  _mm256_mask_storeu_epi16(p, lanes16(n), narrowed(p, v));
}
#elif PW_BYTES == 32
PW_INLINE __m256i lanes8(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
template <>
PW_INLINE Vec<float> load(const float* p, int n) {
  return Vec<float>((Vec<float>::Raw)(n == 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lanes8(n))));
}
template <>
PW_INLINE void store(float* p, Vec<float> v, int n) {
  n == 8 ? _mm256_storeu_ps(p, (__m256)v.v) : _mm256_maskstore_ps(p, lanes8(n), (__m256)v.v);
}
// n times 16 bits, and back; memory beyond them is not touched.
PW_INLINE __m128i load16(const void* p, int n) {
  if (n == 8) return _mm_loadu_si128((const __m128i*)p);
  alignas(16) int16_t lanes[8] = {};
  memcpy(lanes, p, n * sizeof(int16_t));
  return _mm_load_si128((const __m128i*)lanes);
}
PW_INLINE void store16(void* p, __m128i v, int n) {
  if (n == 8) return _mm_storeu_si128((__m128i*)p, v);
  alignas(16) int16_t lanes[8];
  _mm_store_si128((__m128i*)lanes, v);
  memcpy(p, lanes, n * sizeof(int16_t));
}
template <>
PW_INLINE Vec<float> load(const f16* p, int n) {
  return Vec<float>((Vec<float>::Raw)_mm256_cvtph_ps(load16(p, n)));
}
template <>
PW_INLINE Vec<float> load(const bf16* p, int n) {
  const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p, n)), 16);
  return Vec<float>((Vec<float>::Raw)_mm256_castsi256_ps(wide));
}
PW_INLINE __m128i narrowed(const f16*, Vec<float> v) { return _mm256_cvtps_ph((__m256)v.v, _MM_FROUND_TO_NEAREST_INT); }
// As in AVX-512 above.
PW_INLINE __m128i narrowed(const bf16*, Vec<float> v) {
  const __m256i u = _mm256_castps_si256((__m256)v.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps((__m256)v.v, (__m256)v.v, _CMP_UNORD_Q));
  r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
template <>
PW_INLINE void store(f16* p, Vec<float> v, int n) {
  store16(p, narrowed(p, v), n);
}
template <>
PW_INLINE void store(bf16* p, Vec<float> v, int n) {
  store16(p, narrowed(p, v), n);
}
#endif

// A whole vector past the caches, to an address that is a multiple of its bytes.
template <class T>
PW_INLINE void stream(T* p, Vec<acc_t<T>> v) {
#if PW_BYTES == 64
  if constexpr (sizeof(T) == 2)
    _mm256_stream_si256((__m256i*)p, narrowed(p, v));
  else
    _mm512_stream_si512((__m512i*)p, (__m512i)v.v);
#elif defined(__x86_64__) && PW_BYTES == 32
  if constexpr (sizeof(T) == 2)
    _mm_stream_si128((__m128i*)p, narrowed(p, v));
  else
    _mm256_stream_si256((__m256i*)p, (__m256i)v.v);
#else
  store(p, v, v.size);
#endif
}
// Makes streamed stores visible to others before what follows.
PW_INLINE void end_stream() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

// n lanes that lie `step` elements apart.
template <class T>
PW_INLINE Vec<acc_t<T>> gather(const T* p, int64_t step, int n) {
  if (step == 1) return load(p, n);
  T lanes[Vec<acc_t<T>>::size];
  for (int i = 0; i < n; ++i) lanes[i] = p[i * step];
  return load<T>(lanes, n);
}
template <class T>
PW_INLINE void scatter(T* p, int64_t step, Vec<acc_t<T>> v, int n) {
  if (step == 1) return store(p, v, n);
  T lanes[Vec<acc_t<T>>::size];
  store<T>(lanes, v, n);
  for (int i = 0; i < n; ++i) p[i * step] = lanes[i];
}

}  // namespace pw::PW_ISA
