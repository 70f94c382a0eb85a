// Asynchronous copies of one thread, in groups. The destination is poison until the group has been waited for, the
// latest moment the hardware may choose; reading it earlier therefore gives NaN.
#pragma once
#include <cstdint>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <vector>

#include "poison.h"

namespace pw::emulate {

class AsyncCopies {
 public:
  // Copies the first `bytes` of `size` to shared memory and fills the rest with zeros.
  void add(void* to, const void* from, int size, int bytes) {
    if (reinterpret_cast<uintptr_t>(to) % size || reinterpret_cast<uintptr_t>(from) % size)
      throw std::runtime_error("emulator: asynchronous copy of " + std::to_string(size) +
                               " bytes, expected both addresses to be multiples of that");
    if (bytes < 0 || bytes > size)
      throw std::runtime_error("emulator: asynchronous copy of " + std::to_string(bytes) + " out of " +
                               std::to_string(size) + " bytes");
    poison(to, size);
    open_.push_back({to, from, size, bytes});
  }

  void commit() {
    groups_.push_back(std::move(open_));
    open_.clear();
  }

  // Completes the oldest groups until `pending` are left.
  void wait(size_t pending) {
    for (; groups_.size() > pending; groups_.pop_front())
      for (const Copy& copy : groups_.front()) {
        memset(copy.to, 0, copy.size);
        memcpy(copy.to, copy.from, copy.bytes);
      }
  }

  void clear() { groups_.clear(), open_.clear(); }

 private:
  struct Copy {
    void* to;
    const void* from;
    int size, bytes;
  };
  std::vector<Copy> open_;
  std::deque<std::vector<Copy>> groups_;
};

}  // namespace pw::emulate
