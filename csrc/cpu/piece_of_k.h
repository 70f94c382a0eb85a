// K in pieces: what is added up of the strips, and where the sums of the pieces before are kept meanwhile.
#pragma once
#include "operands.h"

namespace pw::PW_ISA {

constexpr int64_t kPartialRows = 512;  // of partial sums, 128 KB: a part of the second-level cache

template <class D>
class PieceOfK {
  using Elem = typename D::Elem;
  using Acc = typename D::Acc;

 public:
  // All of k, in the strips themselves: a copy for each block took 8 % of dW.
  void take_all(Strip<Elem>* strips, int stretches) {
    strips_ = strips, index_ = 0, count_ = stretches, partial_ = nullptr;
  }
  // The piece `index` of `length` elements each, for rows of C that are the group's from `row` on.
  void take(const Strip<Elem>* strips, int stretches, int64_t index, int64_t length, int64_t row) {
    static thread_local Scratch<Acc> partial;
    strips_ = part_, index_ = index, count_ = 0;
    partial_ = partial.get((kPartialRows + kBlockRows) * kMostLanes) + row * kMostLanes;
    int64_t begin = index * length, left = length;
    for (int i = 0; i < stretches && left > 0; ++i) {
      const int64_t stored = cpu::ceil_div(strips[i].k, D::kChunk) * D::kChunk;
      if (begin < stored) {
        Strip<Elem>& part = part_[count_++] = strips[i];
        part.a += begin * part.a_step, part.b += begin * part.b_step;
        part.k = std::min(left, part.k - begin);
        left -= std::min(left, stored - begin);
      }
      begin = std::max<int64_t>(0, begin - stored);
    }
  }

  bool one_of_several() const { return partial_ != nullptr; }
  bool first() const { return index_ == 0; }
  Acc* partial() const { return partial_; }

  // The tile of `rows` rows below; whoever has all of k moves the strips on.
  void next_tile(int64_t rows) {
    for (int i = 0; strips_ == part_ && i < count_; ++i) part_[i].next_tile();
    if (partial_) partial_ += rows * kMostLanes;
  }
  // Runs the microkernel of the right size, on `rows` rows from row r on.
  void multiply(Microkernel<D>& microkernel, int r, int rows, int columns, const Target<D>& t) {
    constexpr int L = Vec<Acc>::size;
    if (columns == 0) return;
    const int vectors = (columns + L - 1) / L, last = columns - (vectors - 1) * L;
    for (int i = 0; i < count_; ++i) strips_[i].a_row += r;
    microkernel.run(strips_, count_, rows, vectors, last, t);
    for (int i = 0; i < count_; ++i) strips_[i].a_row -= r;
  }

 private:
  Strip<Elem> part_[kStrips], *strips_ = part_;
  int count_ = 0;
  int64_t index_ = 0;
  Acc* partial_ = nullptr;  // rows of kMostLanes
};

}  // namespace pw::PW_ISA
