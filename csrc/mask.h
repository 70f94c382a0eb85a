// Masks: one bit for each element of an activation's output, whether its gradient passes, as a tensor that a forward
// pass leaves for the backward pass in place of y. Layout: Mask in problem.h.
#pragma once
#include "shape.h"

namespace pw {

// Whether kernels that know masks leave one. Sizes do not matter: the compiler asks before it knows them
// (pointwise_ext/masks.py has the same rule).
bool keeps_mask(at::ScalarType dtype, const ConvParams& params);

// int32: (Cout, words) where bits are pixels, (N, pixels of one sample, words) where they are channels.
at::Tensor empty_mask(const Shape& shape, bool along_pixels, const at::Tensor& like);

// Of all that a forward call saves, only masks are integers.
inline bool is_mask(const at::Tensor& saved) { return saved.scalar_type() == at::kInt; }
void check_mask(const at::Tensor& mask, const Shape& shape, const at::Tensor& like, const ConvParams& params);

// `mask` has to be contiguous.
Mask view_mask(const at::Tensor& mask);

// 1 where the gradient passes and 0 elsewhere, like the output and its gradient `dy`: activation_grad() takes it for y.
at::Tensor expand_mask(const at::Tensor& mask, const at::Tensor& dy, bool batched);

}  // namespace pw
