// From a convolution to its products: which operand is which matrix, forward (conv.cpp) and backward (backward.cpp).
#pragma once
#include <ATen/Context.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <vector>

#include "shape.h"
#include "views.h"

namespace pw {

using Gemms = c10::SmallVector<Gemm, 1>;

// Pixels become rows of C where channels are the innermost dimension (channels_last), columns otherwise.
inline Pixels pixel_side(const View& c, int64_t channels) {
  return c.stride[1] == 1 && channels > 1 ? Pixels::on_m : Pixels::on_n;
}

inline void set_axes(Gemm& g, const Axis& pixels, int64_t channels) {
  (g.pixels == Pixels::on_m ? g.m : g.n) = pixels;
  (g.pixels == Pixels::on_m ? g.n : g.m) = channel_axis(channels);
}

// A product in the dtype of `like`. float32 on CUDA follows PyTorch's switches for convolutions.
inline void set_like(Gemm& g, const at::Tensor& like, Pixels pixels) {
  g.dtype = parse_dtype(like.scalar_type());
  g.tf32 = like.is_cuda() && g.dtype == DType::f32 && at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
  g.pixels = pixels;
}

// Fewer, longer dimensions of pixels wherever all operands allow it.
inline void collapse_pixels(Gemm& g) {
  Steps* steps[2 * kSources + 3] = {};
  int count = 0;
  const auto add = [&](Matrix& m, bool rows) {
    if (m.data) steps[count++] = rows ? &m.row : &m.col;
  };
  if (g.pixels == Pixels::on_k) {
    add(g.segment[0].a, false), add(g.segment[0].b, true);
    return collapse(g.segment[0].k, steps);
  }
  const bool rows = g.pixels == Pixels::on_m;
  for (int i = 0; i < g.segments; ++i) add(rows ? g.segment[i].a : g.segment[i].b, rows);
  add(g.c, rows), add(g.z, rows), add(g.residual, rows);
  collapse(rows ? g.m : g.n, steps);
}

// The same for all products of a pass and the pass itself, which share one axis of pixels and go on doing so.
inline void collapse_together(std::vector<Gemms>& products, ActivationGrad& pass) {
  Steps* steps[4 * kSources + 3] = {};
  int count = 0;
  const auto add = [&](Matrix& m, bool rows) {
    if (m.data) steps[count++] = rows ? &m.row : &m.col;
  };
  for (Matrix* m : {&pass.dy, &pass.saved, &pass.dz}) add(*m, true);
  for (Gemms& gemms : products)
    if (!gemms.empty()) {
      Gemm& g = gemms[0];
      const bool on_k = g.pixels == Pixels::on_k, rows = g.pixels == Pixels::on_m;
      add(on_k || rows ? g.segment[0].a : g.segment[0].b, rows);
      add(on_k ? g.segment[0].b : g.c, on_k || rows);
    }
  collapse(pass.pixels, steps);
  for (Gemms& gemms : products)
    for (Gemm& g : gemms)
      (g.pixels == Pixels::on_k ? g.segment[0].k : g.pixels == Pixels::on_m ? g.m : g.n) = pass.pixels;
}

// W of one group as the operand next to the pixels': (out, in) seen from the side that `transposed` asks for.
inline Matrix weight_matrix(const at::Tensor& w, int64_t row, int64_t column, bool transposed) {
  char* data = static_cast<char*>(w.data_ptr());
  if (data) data += (row * w.stride(0) + column * w.stride(1)) * w.element_size();
  const Steps out = {{0, 0, 0, w.stride(0)}}, in = {{0, 0, 0, w.stride(1)}};
  return transposed ? Matrix{data, in, out} : Matrix{data, out, in};
}

// Channels [begin, end) of the inputs' concatenation that lie in one input.
struct Slice {
  size_t source;
  int64_t begin, count;  // within that source
  int64_t column;        // within the range asked for
};

inline c10::SmallVector<Slice, kSources> slices(at::TensorList inputs, int channel, int64_t begin, int64_t end) {
  c10::SmallVector<Slice, kSources> result;
  int64_t start = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const int64_t stop = start + inputs[i].size(channel), low = std::max(begin, start), high = std::min(end, stop);
    if (low < high) result.push_back({i, low - start, high - low, low - begin});
    start = stop;
  }
  return result;
}

// With several inputs the groups' products differ in shape and run one by one.
inline void add_launches(const Gemms& gemms, size_t inputs, std::vector<Products>& to) {
  const int64_t count = int64_t(gemms.size()), together = inputs == 1 ? count : 1;
  for (int64_t i = 0; i < count; i += together) to.push_back({&gemms[i], together});
}

}  // namespace pw
