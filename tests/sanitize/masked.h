// Loads and stores that g++ hands through to the processor without telling the sanitizer: masked and streamed ones.
// Included before everything else, this tells it of each one before it happens.
#pragma once
#if defined(__x86_64__) && (defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__))
#include <immintrin.h>

#ifdef __SANITIZE_ADDRESS__
#define PW_READ __asan_loadN
#define PW_WRITE __asan_storeN
#else
#define PW_READ __tsan_read_range
#define PW_WRITE __tsan_write_range
#endif
extern "C" void PW_READ(void*, unsigned long);
extern "C" void PW_WRITE(void*, unsigned long);

// From the first lane of the mask to the last, of that many bytes each: the masks in use have no gaps.
__attribute__((always_inline)) inline void pw_tell(void (*tell)(void*, unsigned long), const void* p, unsigned mask,
                                                   int bytes) {
  if (!mask) return;
  const int first = __builtin_ctz(mask), end = 32 - __builtin_clz(mask);
  tell((char*)p + first * bytes, (end - first) * bytes);
}

// A macro's own name is not expanded again within it.
#define _mm512_maskz_loadu_ps(m, p) (pw_tell(PW_READ, p, m, 4), _mm512_maskz_loadu_ps(m, p))
#define _mm512_maskz_loadu_pd(m, p) (pw_tell(PW_READ, p, m, 8), _mm512_maskz_loadu_pd(m, p))
#define _mm512_maskz_loadu_epi16(m, p) (pw_tell(PW_READ, p, m, 2), _mm512_maskz_loadu_epi16(m, p))
#define _mm512_maskz_loadu_epi32(m, p) (pw_tell(PW_READ, p, m, 4), _mm512_maskz_loadu_epi32(m, p))
#define _mm256_maskz_loadu_epi16(m, p) (pw_tell(PW_READ, p, m, 2), _mm256_maskz_loadu_epi16(m, p))
#define _mm512_mask_storeu_ps(p, m, ...) (pw_tell(PW_WRITE, p, m, 4), _mm512_mask_storeu_ps(p, m, __VA_ARGS__))
#define _mm512_mask_storeu_pd(p, m, ...) (pw_tell(PW_WRITE, p, m, 8), _mm512_mask_storeu_pd(p, m, __VA_ARGS__))
#define _mm512_mask_storeu_epi16(p, m, ...) (pw_tell(PW_WRITE, p, m, 2), _mm512_mask_storeu_epi16(p, m, __VA_ARGS__))
#define _mm512_mask_storeu_epi32(p, m, ...) (pw_tell(PW_WRITE, p, m, 4), _mm512_mask_storeu_epi32(p, m, __VA_ARGS__))
#define _mm256_mask_storeu_epi16(p, m, ...) (pw_tell(PW_WRITE, p, m, 2), _mm256_mask_storeu_epi16(p, m, __VA_ARGS__))
#define _mm512_stream_si512(p, ...) (pw_tell(PW_WRITE, p, 1, 64), _mm512_stream_si512(p, __VA_ARGS__))
#define _mm256_stream_si256(p, ...) (pw_tell(PW_WRITE, p, 1, 32), _mm256_stream_si256(p, __VA_ARGS__))
#define _mm_stream_si128(p, ...) (pw_tell(PW_WRITE, p, 1, 16), _mm_stream_si128(p, __VA_ARGS__))
#define PW_LANES(m) _mm256_movemask_ps(_mm256_castsi256_ps(m))
#define _mm256_maskload_ps(p, m) (pw_tell(PW_READ, p, PW_LANES(m), 4), _mm256_maskload_ps(p, m))
#define _mm256_maskstore_ps(p, m, ...) (pw_tell(PW_WRITE, p, PW_LANES(m), 4), _mm256_maskstore_ps(p, m, __VA_ARGS__))

#endif
