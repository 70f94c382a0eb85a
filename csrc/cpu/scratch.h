// Memory of one thread that its next call finds again.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace pw::PW_ISA {

// Packed operands of one thread, kept between calls up to kKeep: allocating 1 MB anew costs more than filling it.
template <class Elem>
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  Elem* get(int64_t elements) {
    if (elements > size_) {
      std::free(data_);
      data_ = static_cast<Elem*>(std::aligned_alloc(64, (elements * sizeof(Elem) + 63) / 64 * 64));
      if (!data_) throw std::bad_alloc();
      size_ = elements;
    }
    return data_;
  }
  void trim() {
    constexpr int64_t kKeep = 16 << 20;
    if (size_ * int64_t(sizeof(Elem)) > kKeep) std::free(data_), data_ = nullptr, size_ = 0;
  }

 private:
  Elem* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace pw::PW_ISA
