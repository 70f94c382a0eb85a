// AMX (TILE, BF16) beside AVX-512: bf16 in tile registers; other types are left to AVX-512's sets.
#include "common.h"
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __clang__
#pragma clang attribute push(                                                                                        \
    __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,prfchw"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,prfchw")
#endif
#define PW_ISA amx
#define PW_BYTES 64
#define PW_BF16_DOT
#define PW_AMX
#include "isa.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace pw::cpu {

extern const Kernels avx512_bf16_kernels;

// The kernel must be asked for the registers, once for all threads; it refuses where it does not save them.
static bool has_amx() {
#ifdef PW_EMULATE_AMX
  return avx512_bf16_kernels.supported();
#endif
  unsigned a, b, c, d;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if (!avx512_bf16_kernels.supported() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of asm/prctl.h, which older headers lack
  static const bool permitted =
      (d & kBf16) && (d & kTile) && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return permitted;
}

// What does not multiply is AVX-512's.
static void merge(DType t, const Job& job, int64_t begin, int64_t end) {
  avx512_bf16_kernels.merge(t, job, begin, end);
}
static void activation_grad(const ActivationGrad& p, void* partial, int64_t begin, int64_t end) {
  avx512_bf16_kernels.activation_grad(p, partial, begin, end);
}

extern const Kernels amx_kernels = {"amx", has_amx,         amx::tiling<true>, amx::run<true>,
                                    merge, activation_grad, amx::chunked<true>};

}  // namespace pw::cpu
#endif
