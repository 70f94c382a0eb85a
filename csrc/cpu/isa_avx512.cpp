// AVX-512 (F, BW, DQ, VL), with and without the dot product of bf16 pairs.
#include "common.h"
#if defined(__x86_64__)
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,prfchw"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,prfchw")
#endif
#define PW_ISA avx512
#define PW_BYTES 64
#define PW_BF16_DOT
#include "isa.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace pw::cpu {

static bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

extern const Kernels avx512_bf16_kernels = avx512::table<true>("avx512_bf16", has_avx512_bf16);
extern const Kernels avx512_kernels = avx512::table<false>("avx512", has_avx512);

}  // namespace pw::cpu
#endif
