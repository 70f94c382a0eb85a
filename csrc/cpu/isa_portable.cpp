// Any processor: vectors of 16 bytes, which the compiler maps to SSE2, NEON or whatever there is.
#include "common.h"

#define PW_ISA portable
#define PW_BYTES 16
#include "isa.h"

namespace pw::cpu {

extern const Kernels portable_kernels = portable::table<false>("portable", [] { return true; });

}  // namespace pw::cpu
