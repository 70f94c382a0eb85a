#include "kernels.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <string>

namespace pw::cpu {

#if defined(__x86_64__)
extern const Kernels avx512_bf16_kernels, avx512_kernels, avx2_kernels;
#if defined(__linux__)
extern const Kernels amx_kernels;
#endif
#endif
extern const Kernels portable_kernels;

const Kernels* const* all_kernels() {
  static const Kernels* const all[] = {
#if defined(__x86_64__)
#if defined(__linux__)
      &amx_kernels,
#endif
      &avx512_bf16_kernels, &avx512_kernels, &avx2_kernels,
#endif
      &portable_kernels,    nullptr};
  return all;
}

static const Kernels& choose(const char* wanted) {
  std::string names;
  for (const Kernels* const* k = all_kernels(); *k; ++k) {
    const bool supported = (*k)->supported();
    if (supported && (!wanted || !std::strcmp(wanted, (*k)->name))) return **k;
    if (supported) names += std::string(names.empty() ? "" : ", ") + (*k)->name;
  }
  TORCH_CHECK(false, "POINTWISE_EXT_CPU is '", wanted, "', expected one this processor supports: ", names,
              "; correct or unset it");
}

struct Choice {
  const Kernels* set;
  const Kernels *pairs = nullptr, *widening = nullptr;  // other ways to multiply bf16
  bool slow_pairs = false;

  Choice() {
    const char* wanted = std::getenv("POINTWISE_EXT_CPU");
    if (wanted && !*wanted) wanted = nullptr;
    set = &choose(wanted);
#if defined(__x86_64__)
    const bool tiles = !std::strcmp(set->name, "amx");
    if (tiles || set == &avx512_bf16_kernels) pairs = &avx512_bf16_kernels, widening = &avx512_kernels;
    // Sapphire Rapids reaches 150 GFLOP/s with vdpbf16ps where its fp32 multiply-adds reach 290; Zen 4 450 and 222.
    slow_pairs = !wanted && !tiles && __builtin_cpu_is("intel");
#endif
  }
};

static const Choice& choice() {
  static const Choice chosen;
  return chosen;
}

const Kernels& kernels() { return *choice().set; }

const Kernels& kernels(DType dtype) {
  const Choice& chosen = choice();
  return chosen.widening && dtype != DType::bf16 ? *chosen.widening : *chosen.set;
}

const Kernels& kernels(const Gemm& g) {
  const Choice& chosen = choice();
  if (!chosen.widening || g.dtype != DType::bf16) return kernels(g.dtype);
  if (forced.widened != -1) return forced.widened ? *chosen.widening : *chosen.pairs;
  return chosen.slow_pairs && !pairs_pay(g) ? *chosen.widening : *chosen.set;
}

}  // namespace pw::cpu
