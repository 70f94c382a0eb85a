// AVX2 with FMA and F16C.
#include "common.h"
#if defined(__x86_64__)
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,prfchw"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,prfchw")
#endif
#define PW_ISA avx2
#define PW_BYTES 32
#include "isa.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace pw::cpu {

static bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

extern const Kernels avx2_kernels = avx2::table<false>("avx2", has_avx2);

}  // namespace pw::cpu
#endif
