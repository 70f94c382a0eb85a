// What an instruction set offers: the same functions from the same source, compiled once per set (isa_*.cpp).
#pragma once
#include "plan.h"

namespace pw::cpu {

// Products of equal shape and one plan, shared by the tasks that run units of it.
struct Job {
  const Gemm* gemms;
  Plan plan;
  const void* bias = nullptr;  // of all products in accumulation type; null: read each product's own
  void* sums = nullptr;        // dW: partial sums [product][k part][m][n] in accumulation type; null: C holds them
  bool add = false;            // to the sums there are
};

struct Chunked;

struct Kernels {
  const char* name;
  bool (*supported)();
  Tiling (*tiling)(DType);
  void (*run)(DType, const Job&, int64_t begin, int64_t end);    // units of all products
  void (*merge)(DType, const Job&, int64_t begin, int64_t end);  // rows of all products: C from the partial sums
  // Rows [begin, end) of grad_rows(problem); row r leaves its sums per channel in partial[r].
  void (*activation_grad)(const ActivationGrad&, void* partial, int64_t begin, int64_t end);
  void (*chunked)(DType, const Chunked&, int64_t begin, int64_t end);  // parts of a backward pass
};

// Pixels of dZ done together, a row: of all channels where those are the innermost dimension, else of one channel after
// the other. A row is short enough for small images to have two: what one thread alone has written, the others read
// slowly.
constexpr int64_t kGradPixels = 128;
inline bool channels_inner(const ActivationGrad& p) { return p.dy.col.step[kRank - 1] == 1 && p.channels > 1; }
// Rows of a run: the pixels in one stretch of memory.
inline int64_t grad_run(const ActivationGrad& p) {
  return channels_inner(p) ? p.pixels.count() : p.pixels.size[kRank - 1];
}
inline int64_t grad_rows_per_run(const ActivationGrad& p) { return ceil_div(grad_run(p), kGradPixels); }
inline int64_t grad_rows(const ActivationGrad& p) { return grad_rows_per_run(p) * (p.pixels.count() / grad_run(p)); }

// All sets this build has, best first; the one in use is the first supported, or the one POINTWISE_EXT_CPU names.
const Kernels* const* all_kernels();  // null-terminated
const Kernels& kernels();
// The set for what does not multiply: AMX knows bf16 only.
const Kernels& kernels(DType);
// The set for one product: where dot products of bf16 are slow, the set without them takes those that it does faster.
const Kernels& kernels(const Gemm&);

}  // namespace pw::cpu
