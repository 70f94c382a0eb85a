// The warp's matrix instructions: every lane hands over its share and computes what the hardware would give it.
#pragma once
#include <cstring>
#include <stdexcept>

#include "block.h"

namespace pw::emulate {

template <class Share>
Share share_of(const char* all, int lane) {
  Share share;
  memcpy(&share, all + lane * kExchange, sizeof(Share));
  return share;
}

inline void load_matrices(uint32_t (&to)[4], const void* row, bool transposed, int line) {
  if (reinterpret_cast<uintptr_t>(row) % 16)
    throw std::runtime_error("emulator: a row of a matrix starts at no multiple of 16 bytes");
  const char* rows = Grid::current().exchange(&row, sizeof(row), line);
  const int lane = Grid::current().thread() % kWarp;
  for (int j = 0; j < 4; ++j) {
    uint16_t pair[2];
    for (int h = 0; h < 2; ++h) {
      const int x = lane / 4, y = 2 * (lane % 4) + h;
      const auto* from = static_cast<const char*>(share_of<const void*>(rows, 8 * j + (transposed ? y : x)));
      memcpy(&pair[h], from + 2 * (transposed ? x : y), 2);
    }
    memcpy(&to[j], pair, 4);
  }
}

// D (16x8) += A (16 x 8 PACK) B (8 PACK x 8), PACK values of k in a register; `value` takes one of them out.
template <int PACK, class Value>
void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Value value, int line) {
  struct Share {
    uint32_t a[4], b[2];
  } mine;
  memcpy(mine.a, a, sizeof(a)), memcpy(mine.b, b, sizeof(b));
  const char* all = Grid::current().exchange(&mine, sizeof(mine), line);
  const int lane = Grid::current().thread() % kWarp;
  for (int i = 0; i < 4; ++i) {
    const int m = lane / 4 + 8 * (i / 2), n = 2 * (lane % 4) + i % 2;
    for (int k = 0; k < 8 * PACK; ++k) {
      const int half = k / (4 * PACK), t = k / PACK % 4;
      const auto of_a = share_of<Share>(all, m % 8 * 4 + t), of_b = share_of<Share>(all, n * 4 + t);
      d[i] += value(of_a.a[m / 8 + 2 * half], k % PACK) * value(of_b.b[half], k % PACK);
    }
  }
}

}  // namespace pw::emulate
