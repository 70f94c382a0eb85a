// Sizes of one convolution, checked: every error is raised here, before anything is allocated or read.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "conv.h"

namespace pw {

// Where the input's samples fall in the output along one spatial dimension: outputs [low, high) read the input from
// index `start` in steps of the stride; the others lie in the padding.
struct Window {
  int64_t low, high, start;
};

struct Shape {
  int spatial;  // 1 to 3 spatial dimensions, right-aligned in the arrays below
  bool batched;
  int64_t batch, in_channels, out_channels, groups;
  int64_t in_size[3] = {1, 1, 1}, out_size[3] = {1, 1, 1}, stride[3] = {1, 1, 1}, padding[3] = {0, 0, 0};
  Window window[3];
  bool interior_is_all() const;  // no output lies in the padding
  bool covers_input() const;     // every input pixel is read
  std::vector<int64_t> output_sizes() const;
};

Shape check_shape(at::TensorList inputs, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  const std::optional<at::Tensor>& residual, const ConvParams& params);

// Whether the strides of a (N, C, *S) tensor say channels_last; torch's rule, for 1 to 3 spatial dimensions.
bool is_channels_last(const at::Tensor& t, bool batched);

// A new dense tensor of these sizes in the format of `like`, a tensor with the same number of dimensions.
at::Tensor empty_in_format_of(const at::Tensor& like, at::IntArrayRef sizes, bool batched);

}  // namespace pw
