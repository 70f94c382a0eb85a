// One matrix product with its epilogue as plain data (no torch), the only thing a kernel of any device is handed:
//
//     C[m, n] = activation( sum_s sum_k A_s[m, k] B_s[k, n] + bias + residual[m, n] )
//
// Which operand is which, and how it lies in memory, is decided by the strides alone (P: pixels of the whole batch):
//
//     product   M     N     K     A          B          C      layout
//     forward   Cout  P     Cin   W          X          Y      NCHW
//     forward   P     Cout  Cin   X          W^T        Y      channels_last
//     dX        Cin   P     Cout  W^T        dZ         dX     NCHW
//     dX        P     Cin   Cout  dZ         W          dX     channels_last
//     dW        Cout  Cin   P     dZ         X^T        dW     both
#pragma once
#include <cstdint>

#include "dtype.h"

namespace pw {

enum class Act : int32_t {
  none,
  relu,
  relu6,
  leaky_relu,
  silu,
  gelu,
  gelu_tanh,
  hardswish,
  hardsigmoid,
  sigmoid,
  tanh,
  clamp
};

struct Activation {
  Act kind = Act::none;
  double alpha = 0, beta = 0;  // leaky_relu: slope; clamp: lower and upper bound
};

// The derivative is taken from z = conv + bias + residual for these; for the others y = activation(z) says enough.
PW_HD bool saves_z(const Activation& a) {
  switch (a.kind) {
    case Act::silu:
    case Act::gelu:
    case Act::gelu_tanh:
    case Act::hardswish:
    case Act::hardsigmoid:
    case Act::clamp:
      return true;
    case Act::leaky_relu:
      return a.alpha < 0;  // y no longer tells the sign of z
    default:
      return false;
  }
}

// One bit of y, whether its gradient passes, is all that the derivative of these takes: see passes() in activation.h.
PW_HD bool one_bit(const Activation& a) {
  return a.kind == Act::relu || a.kind == Act::relu6 || (a.kind == Act::leaky_relu && a.alpha >= 0);
}

constexpr int kRank = 4;     // an axis of pixels has up to four nested dimensions: (N, D, H, W)
constexpr int kSources = 8;  // inputs of one call, whose channels follow one another

// An axis: an index that runs over nested dimensions, innermost last. Channels use the last dimension only.
struct Axis {
  int64_t size[kRank] = {1, 1, 1, 1};
  PW_HD int64_t count() const { return size[0] * size[1] * size[2] * size[3]; }
};

// Strides in elements of one operand along one axis.
struct Steps {
  int64_t step[kRank] = {0, 0, 0, 0};
};

PW_HD int64_t offset(const Axis& axis, const Steps& steps, int64_t index) {
  int64_t sum = 0;
  for (int d = kRank - 1; d > 0; --d) {
    if (axis.size[d] == 1) continue;
    if (index < axis.size[d]) return sum + index * steps.step[d];
    sum += index % axis.size[d] * steps.step[d];
    index /= axis.size[d];
  }
  return sum + index * steps.step[0];
}

struct Matrix {
  void* data = nullptr;  // null: absent
  Steps row, col;
};

// Bits for the elements of an activation's output, 32 to a word, each row with words of its own: bit i % 32 of word
// row * pitch + i / 32. Rows are channels and bits pixels, or the other way round, whichever are neighbours in memory.
struct Mask {
  uint32_t* words = nullptr;  // null: absent
  int64_t pitch = 0;          // words of a row
  bool along_pixels = true;   // the bits of a row
};

// A part of the sum over k: one input of several, or all there is.
struct Segment {
  Matrix a, b;
  Axis k;
};

// Makes dZ = dY activation'(z) of an operand dY as a kernel reads it, so that dZ never lies in memory, by the mask of
// y. Without a mask the operand is taken as it is.
struct Gate {
  Activation activation;
  Mask mask;
  PW_HD bool present() const { return mask.words; }
};

enum class Pixels : int32_t { on_m, on_n, on_k };  // where the long axis is

struct Gemm {
  DType dtype = DType::f32;
  bool tf32 = false;  // float32 operands may be rounded to TF32 (CUDA)
  Pixels pixels = Pixels::on_n;
  Axis m, n;
  int32_t segments = 0;  // 0: C = activation(bias + residual)
  Segment segment[kSources];
  Matrix c;
  Matrix z;         // also written, before the activation, when present
  Mask mask;        // also written, of the elements of C, bits along n, when present
  Matrix residual;  // dtype of C, as bias
  const void* bias = nullptr;
  int64_t bias_step = 1;
  bool bias_on_m = true;  // one bias per row of C, else per column
  Activation activation;
  Gate gate;
  void* row_sums = nullptr;  // also written, the sums of A's rows, contiguous, when present: db beside dW

  PW_HD bool gate_on_a() const { return pixels != Pixels::on_n; }  // the operand that has the pixels
};

// The products of one launch: equal in shape and strides, as the groups of a convolution are.
struct Products {
  const Gemm* gemms;
  int64_t count;
};

// dz = dy activation'(saved) and db[c] = sum of dz over batch and pixels, in one pass; either result may be absent.
struct ActivationGrad {
  DType dtype = DType::f32;
  Activation activation;
  Axis pixels;  // (N, D, H, W)
  int64_t channels = 0;
  Matrix dy, saved, dz;  // row: pixels; col: channels (last dimension)
  Mask mask;             // in place of saved, when present
  void* db = nullptr;    // (channels,), contiguous
};

// Merges neighbouring dimensions of an axis where every operand steps through both as through one.
template <int COUNT>
void collapse(Axis& axis, Steps* const (&operands)[COUNT]) {
  int last = kRank - 1;  // the dimension being grown
  for (int d = kRank - 2; d >= 0; --d) {
    bool merge = true;
    if (axis.size[d] != 1 && axis.size[last] != 1)
      for (Steps* s : operands) merge = merge && (!s || s->step[d] == s->step[last] * axis.size[last]);
    if (!merge) {
      --last;
      if (last == d) continue;
      axis.size[last] = axis.size[d];
      axis.size[d] = 1;
      for (Steps* s : operands)
        if (s) s->step[last] = s->step[d], s->step[d] = 0;
      continue;
    }
    if (axis.size[d] != 1) {
      for (Steps* s : operands)
        if (s && axis.size[last] == 1) s->step[last] = s->step[d];
      axis.size[last] *= axis.size[d];
      axis.size[d] = 1;
    }
    for (Steps* s : operands)
      if (s) s->step[d] = 0;
  }
}

}  // namespace pw
