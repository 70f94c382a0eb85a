// What memory holds before it has been written: NaN in every float type, and far outside of anything as an offset.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace pw::emulate {

constexpr uint16_t kPoison = 0x7fff;

inline void poison(void* memory, size_t bytes) {
  char* to = static_cast<char*>(memory);
  for (size_t i = 0; i < bytes; i += sizeof(kPoison))
    memcpy(to + i, &kPoison, bytes - i < sizeof(kPoison) ? bytes - i : sizeof(kPoison));
}

}  // namespace pw::emulate
