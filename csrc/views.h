// From tensors to the plain matrices of problem.h: views of five dimensions (N, C, D, H, W), narrowed by arithmetic
// only.
#pragma once
#include "shape.h"

namespace pw {

struct View {
  char* data = nullptr;
  int64_t itemsize = 0;
  int64_t stride[5] = {0, 0, 0, 0, 0};  // in elements: N, C, D, H, W

  View() = default;
  View(const at::Tensor& t, const Shape& s) : data(static_cast<char*>(t.data_ptr())), itemsize(t.element_size()) {
    const int channel = s.batched ? 1 : 0;
    if (s.batched) stride[0] = t.stride(0);
    stride[1] = t.stride(channel);
    for (int i = 0; i < s.spatial; ++i) stride[5 - s.spatial + i] = t.stride(channel + 1 + i);
  }

  View at_channel(int64_t c) const { return moved(c * stride[1]); }

  // Starts at sample start[i] and takes every step[i]-th along the spatial dimensions.
  View sampled(const int64_t (&start)[3], const int64_t (&step)[3]) const {
    View v = moved(start[0] * stride[2] + start[1] * stride[3] + start[2] * stride[4]);
    for (int i = 0; i < 3; ++i) v.stride[2 + i] *= step[i];
    return v;
  }

  Steps pixels() const { return {{stride[0], stride[2], stride[3], stride[4]}}; }
  Steps channels() const { return {{0, 0, 0, stride[1]}}; }
  Matrix by_channel() const { return {data, channels(), pixels()}; }  // (channels, pixels)
  Matrix by_pixel() const { return {data, pixels(), channels()}; }    // (pixels, channels)
  Matrix with_pixels(Pixels where) const { return where == Pixels::on_m ? by_pixel() : by_channel(); }

 private:
  View moved(int64_t elements) const {
    View v = *this;
    if (v.data) v.data += elements * itemsize;
    return v;
  }
};

// The input's samples that outputs read, and those outputs.
struct Interior {
  int64_t in_start[3], out_start[3], in_step[3], size[3];
  explicit Interior(const Shape& s) {
    for (int i = 0; i < 3; ++i) {
      in_start[i] = s.window[i].start, out_start[i] = s.window[i].low, in_step[i] = s.stride[i];
      size[i] = s.window[i].high - s.window[i].low;
    }
  }
  bool empty() const { return size[0] == 0 || size[1] == 0 || size[2] == 0; }
  Axis pixels(int64_t batch) const { return {{batch, size[0], size[1], size[2]}}; }
  View of_input(const View& v) const { return v.sampled(in_start, in_step); }
  View of_output(const View& v) const { return v.sampled(out_start, {1, 1, 1}); }
};

inline Axis channel_axis(int64_t count) { return {{1, 1, 1, count}}; }

}  // namespace pw
