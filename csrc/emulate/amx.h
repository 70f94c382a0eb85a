// AMX's tile registers in memory, in place of the instructions: for tests on processors that have AVX-512 alone, and
// stricter than the real ones, where shapes that do not fit each other end in a signal too late to tell why.
//
//     C[m, n] += sum over k of A[m, 2 k] B[k, 2 n]  +  sum over k of A[m, 2 k + 1] B[k, 2 n + 1]
//
// Source: Intel's Software Developer's Manual, volume 2, TDPBF16PS.
#pragma once
#include <cstdio>

namespace pw::PW_ISA::emulate {

struct Register {
  int rows = 0, bytes = 0;  // 0: not configured
  alignas(64) uint8_t row[16][64];
};
inline thread_local Register registers[8];

inline void require(bool fact, const char* what) {
  if (fact) return;
  std::fprintf(stderr, "emulated AMX: %s\n", what);
  std::abort();
}

inline void configure(const void* shapes) {
  const uint8_t* const bytes = static_cast<const uint8_t*>(shapes);
  require(bytes[0] == 1, "the palette is not 1");
  for (int i = 0; i < 8; ++i) {
    Register& r = registers[i];
    uint16_t row_bytes;
    memcpy(&row_bytes, bytes + 16 + 2 * i, sizeof(row_bytes));
    r.rows = bytes[48 + i], r.bytes = row_bytes;
    require(r.rows <= 16 && r.bytes <= 64, "a shape is too large");
    memset(r.row, 0, sizeof(r.row));
  }
}
inline void release() {
  for (Register& r : registers) r.rows = r.bytes = 0;
}
inline Register& configured(int i) {
  require(registers[i].rows > 0 && registers[i].bytes > 0, "a register has no shape");
  return registers[i];
}
inline void zero(int i) { memset(configured(i).row, 0, sizeof(Register::row)); }
inline void load(int i, const void* from, int64_t row_bytes) {
  Register& r = configured(i);
  memset(r.row, 0, sizeof(r.row));
  for (int m = 0; m < r.rows; ++m) memcpy(r.row[m], static_cast<const char*>(from) + m * row_bytes, r.bytes);
}
inline void store(int i, void* to, int64_t row_bytes) {
  const Register& r = configured(i);
  for (int m = 0; m < r.rows; ++m) memcpy(static_cast<char*>(to) + m * row_bytes, r.row[m], r.bytes);
}

// Halves of 32 bits as fp32; subnormal ones are zero.
inline __m512 widened(__m512i bits) {
  const __mmask16 normal = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
  return _mm512_castsi512_ps(_mm512_maskz_mov_epi32(normal, bits));
}
inline __m512 even(__m512i pairs) { return widened(_mm512_slli_epi32(pairs, 16)); }
inline __m512 odd(__m512i pairs) { return widened(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000)))); }

inline void multiply(int into, int left, int right) {
  Register &c = configured(into), &a = configured(left), &b = configured(right);
  require(c.rows == a.rows && c.bytes == b.bytes && a.bytes == 4 * b.rows, "shapes do not fit each other");
  for (int m = 0; m < c.rows; ++m) {
    __m512 evens = _mm512_setzero_ps(), odds = evens;
    for (int k = 0; k < b.rows; ++k) {
      int pair;
      memcpy(&pair, a.row[m] + 4 * k, sizeof(pair));
      const __m512i x = _mm512_set1_epi32(pair), y = _mm512_load_si512(b.row[k]);
      evens = _mm512_fmadd_ps(even(x), even(y), evens), odds = _mm512_fmadd_ps(odd(x), odd(y), odds);
    }
    const __m512 sums = _mm512_load_ps(c.row[m]);
    _mm512_store_ps(c.row[m], _mm512_add_ps(sums, _mm512_add_ps(evens, odds)));
  }
}

}  // namespace pw::PW_ISA::emulate

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig emulate::configure
#define _tile_release emulate::release
#define _tile_zero emulate::zero
#define _tile_loadd emulate::load
#define _tile_stored emulate::store
#define _tile_dpbf16ps emulate::multiply
