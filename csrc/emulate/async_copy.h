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
  // Copies `bytes` to shared memory, or fills it with zeros where the source lies outside.
  void add(void* to, const void* from, int bytes, bool inside) {
    if (reinterpret_cast<uintptr_t>(to) % bytes || (inside && reinterpret_cast<uintptr_t>(from) % bytes))
      throw std::runtime_error("emulator: asynchronous copy of " + std::to_string(bytes) +
                               " bytes, expected both addresses to be multiples of that");
    poison(to, bytes);
    open_.push_back({to, inside ? from : nullptr, bytes});
  }

  void commit() {
    groups_.push_back(std::move(open_));
    open_.clear();
  }

  // Completes the oldest groups until `pending` are left.
  void wait(size_t pending) {
    for (; groups_.size() > pending; groups_.pop_front())
      for (const Copy& copy : groups_.front()) {
        if (copy.from)
          memcpy(copy.to, copy.from, copy.bytes);
        else
          memset(copy.to, 0, copy.bytes);
      }
  }

  void clear() { groups_.clear(), open_.clear(); }

 private:
  struct Copy {
    void* to;
    const void* from;
    int bytes;
  };
  std::vector<Copy> open_;
  std::deque<std::vector<Copy>> groups_;
};

}  // namespace pw::emulate
