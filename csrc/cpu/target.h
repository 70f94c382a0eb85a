// A tile's shape, where its operands come from, and where its results go.
#pragma once
#include "vec.h"

namespace pw::PW_ISA {

// A stretch of k along which both operands advance by a constant step.
template <class Elem>
struct Strip {
  const Elem* a;
  const int64_t* a_row;  // offset of each row in bytes: a pair of bf16 may start at any of them
  int64_t a_next;        // bytes to the next of several tiles
  int64_t a_ahead = 0;   // bytes to the tile whose rows are fetched meanwhile; 0: they are near
  int64_t a_step;
  const Elem* b;
  int64_t b_step;
  int64_t b_next = 0;  // elements to the next of several tiles
  int64_t b_ahead;     // elements beyond b to fetch, where prefetchers do not follow its rows; 0: packed, or near
  int64_t k;
  bool ends_sum = false;  // what was added up so far goes to memory: a longer running sum would lose more digits

  void next_tile() { a = reinterpret_cast<const Elem*>(reinterpret_cast<const char*>(a) + a_next); }
};

// Most rows of a tile of 1, 2, ... vectors: accumulators, one row of B and a broadcast fill the registers.
#if PW_BYTES == 64
constexpr int kVectors = 4;  // 32 registers
constexpr int kRows[kVectors] = {14, 12, 8, 6};
#else
constexpr int kVectors = 2;  // 16 registers
constexpr int kRows[kVectors] = {8, 6};
#endif
constexpr int kMostRows = kRows[0];
constexpr int kBlockRows = 16;       // of tiles that are finished together
constexpr int kPackedTogether = 32;  // rows: a vector of bf16
constexpr int kMostLanes = kVectors * kBytes / 4;

enum class Init { zero, per_row, per_column };

// Rows of memory that are read next, `bytes` each: fetched into the second-level cache a few lines at a time, so that
// they are there when it is their turn and nobody has waited.
struct Ahead {
  const char *const *row = nullptr, *const *end = nullptr;
  int64_t bytes = 0, at = 0;
  int lines = 0;  // each time

  PW_INLINE void fetch() {
    for (int i = 0; i < lines && row != end; ++i) {
      __builtin_prefetch(*row + at, 0, 2);
      if ((at += 64) >= bytes) at = 0, ++row;
    }
  }
};

// Where a tile starts and goes, and how many more follow below or beside it. Rows are found by offset tables, columns
// are consecutive.
template <class D>
struct Target {
  using Acc = typename D::Acc;
  using Store = typename D::Store;
  Init init = Init::zero;
  const Acc* bias = nullptr;     // of the first row, or column
  int64_t bias_next = 0;         // from one of several tiles to the next
  const Acc* partial = nullptr;  // rows of kMostLanes that are added to the accumulators
  bool in_pieces = false;        // other tiles add the rest of k
  Acc* sums = nullptr;           // where those go raw, or else
  int64_t sums_step = 0;
  bool add = false;    // ... are added to what is there
  Store* c = nullptr;  // clamp(curve(sum + residual), low, high) goes here
  const int64_t* c_row = nullptr;
  const Store* residual = nullptr;
  const int64_t* residual_row = nullptr;
  Store* z = nullptr;  // sum + residual, if that is kept
  const int64_t* z_row = nullptr;
  const Activation* curve = nullptr;
  Acc low, high;
  int64_t tiles = 1, c_next = 0, residual_next = 0, z_next = 0;  // tiles, and from one to the next
  bool streamed = false;  // C is too large for the caches; its rows start at multiples of a line
  Ahead* ahead = nullptr;
};

}  // namespace pw::PW_ISA
