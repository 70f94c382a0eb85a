#include "kernels.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <string>

namespace pw::cpu {

#if defined(__x86_64__)
extern const Kernels avx512_bf16_kernels, avx512_kernels, avx2_kernels;
#endif
extern const Kernels portable_kernels;

const Kernels* const* all_kernels() {
  static const Kernels* const all[] = {
#if defined(__x86_64__)
      &avx512_bf16_kernels, &avx512_kernels, &avx2_kernels,
#endif
      &portable_kernels, nullptr};
  return all;
}

static const Kernels& choose() {
  const char* wanted = std::getenv("POINTWISE_EXT_CPU");
  std::string names;
  for (const Kernels* const* k = all_kernels(); *k; ++k) {
    const bool supported = (*k)->supported();
    if (supported && (!wanted || !*wanted || !std::strcmp(wanted, (*k)->name))) return **k;
    if (supported) names += std::string(names.empty() ? "" : ", ") + (*k)->name;
  }
  TORCH_CHECK(false, "POINTWISE_EXT_CPU is '", wanted, "', expected one this processor supports: ", names,
              "; correct or unset it");
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace pw::cpu
