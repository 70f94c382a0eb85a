// Loads, stores and asynchronous copies: what a copy brings is there once it has been waited for, and NaN before.
#pragma once
#include "thread.h"

namespace ptx {

template <bool SHARED>
void load(Thread* t, const Instruction& i) {
  const int bytes = bytes_of(i.type);
  const char* const from = place(*t, i, i.of[0], bytes * i.width, SHARED);
  for (int o = 0; o < i.width; ++o) {
    uint64_t value = 0;
    std::memcpy(&value, from + o * bytes, bytes);
    t->frame.registers[i.to[o].index] = value;
  }
}
template <bool SHARED>
void store(Thread* t, const Instruction& i) {
  const int bytes = bytes_of(i.type);
  char* const to = place(*t, i, i.to[0], bytes * i.width, SHARED);
  for (int o = 0; o < i.width; ++o) {
    const uint64_t value = bits(*t, i.of[o]);
    std::memcpy(to + o * bytes, &value, bytes);
  }
}
inline void start_copy(Thread* t, const Instruction& i) {
  const int bytes = int(i.of[1].value), there = get<int>(*t, i.of[2]);
  char* const to = place(*t, i, i.to[0], bytes, true);
  if (there < 0 || there > bytes) fault(*t, i, "a copy of more bytes than it has");
  const char* const from = there ? place(*t, i, i.of[0], there, false, bytes) : nullptr;
  std::memset(to, 0xff, bytes);
  if (t->copies.empty()) t->copies.emplace_back();
  t->copies.back().push_back({to, from, bytes, there});
}
inline void close_copies(Thread* t, const Instruction&) {
  if (t->copies.empty()) t->copies.emplace_back();
  t->copies.emplace_back();
}
inline void wait_for_copies(Thread* t, const Instruction& i) {
  while (t->copies.size() > size_t(i.to[0].value) + 1) {
    for (const Copy& c : t->copies.front()) {
      std::memcpy(c.to, c.from ? c.from : c.to, c.there);
      std::memset(c.to + c.there, 0, c.bytes - c.there);
    }
    t->copies.erase(t->copies.begin());
  }
}
inline void nothing(Thread*, const Instruction&) {}

}  // namespace ptx
