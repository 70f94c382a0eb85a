// How one step of k multiplies: in fp32 and fp64 value by value, or two bf16 at a time where the processor can.
#pragma once
#include "vec.h"

namespace pw::PW_ISA {

// Value by value: the element the operands are held in, and what results are stored as: T, or 16 bits
// whose operands are widened as they are packed.
template <class T, class S = T>
struct Dot {
  using Elem = T;
  using Acc = T;
  using Store = S;
  static constexpr int kPack = 1;   // values of k in one element
  static constexpr int kChunk = 1;  // elements of k that packed operands come in
  static PW_INLINE Vec<T> load_b(const T* p, int n) {
    if constexpr (kBytes == 64) return load(p, n);  // a mask costs nothing here; elsewhere tails are packed
    return load(p, Vec<T>::size);
  }
  static PW_INLINE Vec<T> fma(const T* a, Vec<T> b, Vec<T> c) { return Vec<T>(*a * b.v + c.v); }
  static PW_INLINE Vec<T> load_k(const T* p, int n) { return load(p, n); }
  static PW_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) { return a * b + c; }
  // Vectors that follow one another in memory, `last` lanes of the last; `streamed`: past the caches where whole.
  template <int NV>
  static PW_INLINE void store_row(S* p, const Vec<T>* v, int last, bool streamed) {
    constexpr int L = Vec<T>::size;
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n, p += L) {
      const int lanes = n == NV - 1 ? last : L;
      if (streamed && lanes == L)
        stream(p, v[n]);
      else
        store(p, v[n], lanes);
    }
  }
};

#ifdef PW_BF16_DOT
// Two neighbouring k of bf16 in one 32-bit element: vdpbf16ps adds both products to an fp32 accumulator.
struct DotBf16 {
  using Elem = uint32_t;
  using Acc = float;
  using Store = bf16;
  static constexpr int kPack = 2, kChunk = 1;
  static PW_INLINE Vec<float> load_b(const uint32_t* p, int) {
    return Vec<float>((Vec<float>::Raw)_mm512_castsi512_ps(_mm512_loadu_si512(p)));
  }
  static PW_INLINE Vec<float> fma(const uint32_t* a, Vec<float> b, Vec<float> c) {
    int pair;
    memcpy(&pair, a, sizeof(pair));
    return Vec<float>((Vec<float>::Raw)_mm512_dpbf16_ps((__m512)c.v, (__m512bh)_mm512_set1_epi32(pair),
                                                        (__m512bh)_mm512_castps_si512((__m512)b.v)));
  }
  static PW_INLINE Vec<float> load_k(const uint32_t* p, int n) {
    return Vec<float>((Vec<float>::Raw)_mm512_castsi512_ps(_mm512_maskz_loadu_epi32(lanes16(n), p)));
  }
  static PW_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
    return Vec<float>((Vec<float>::Raw)_mm512_dpbf16_ps((__m512)c.v, (__m512bh)_mm512_castps_si512((__m512)a.v),
                                                        (__m512bh)_mm512_castps_si512((__m512)b.v)));
  }
  // Rounded two vectors at a time. The instruction flushes subnormals, as the dot product does.
  template <int NV>
  static PW_INLINE void store_row(bf16* p, const Vec<float>* v, int last, bool streamed) {
    constexpr int L = Vec<float>::size;
#pragma GCC unroll 4
    for (int n = 0; n < NV; n += 2, p += 2 * L) {
      const int lanes = n + 2 == NV ? L + last : 2 * L;
      if (n + 1 == NV) {
        _mm256_mask_storeu_epi16(p, lanes16(last), (__m256i)_mm512_cvtneps_pbh((__m512)v[n].v));
        return;
      }
      const __m512 low = (__m512)v[n].v, high = (__m512)v[n + 1].v;
      const __m512i pair = (__m512i)_mm512_cvtne2ps_pbh(high, low);
      if (streamed && lanes == 2 * L)
        _mm512_stream_si512((__m512i*)p, pair);
      else
        _mm512_mask_storeu_epi16(p, lanes == 2 * L ? ~0u : (1u << lanes) - 1, pair);
    }
  }
};
#endif

// A result: rounded as D::store_row does where that is for its type.
template <class D, class T>
PW_INLINE void round_store(T* p, Vec<acc_t<T>> v, int n) {
  if constexpr (std::is_same_v<T, typename D::Store>)
    D::template store_row<1>(p, &v, n, false);
  else
    store(p, v, n);
}

}  // namespace pw::PW_ISA
