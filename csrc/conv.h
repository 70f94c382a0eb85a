// The convolution in terms of matrix products, the same on every device: checks, shapes, views, and which product with
// which operands. A device contributes a Backend, two functions on plain data.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "problem.h"

namespace pw {

struct Backend {
  const char* name;
  // Computes `count` independent products of equal shape and strides (the groups of one convolution).
  void (*gemm)(const Gemm* gemms, int64_t count, const at::Tensor& like);
  void (*activation_grad)(const ActivationGrad& problem, const at::Tensor& like);
  // Whether products with a gate and row sums, which make dZ and db themselves, replace `pass`. Null: it has none.
  bool (*gates)(const std::vector<Products>& products, const ActivationGrad& pass) = nullptr;
  bool masks = false;  // whether its kernels write and read masks
  // Computes products and `pass` chunk by chunk of pixels, if that is faster; all share one axis, and the products read
  // dY in dZ's place. Asked where `chunks` says that so many bytes of dY may be worth it. Null: it does not.
  bool (*chunks)(int64_t bytes) = nullptr;
  bool (*chunked)(const std::vector<Products>& products, const ActivationGrad& pass, const at::Tensor& like) = nullptr;
  bool samples = false;  // whether dW with a stride reads a copy of the pixels that count: short runs of them are slow
};

// The arguments of one convolution but its tensors; stride and padding have one entry or one per spatial dimension.
struct ConvParams {
  at::IntArrayRef stride, padding;
  int64_t groups;
  Activation activation;
};

// Names of the contract ("none", "relu", ...); anything else raises and lists them.
Activation parse_activation(c10::string_view name, double alpha, double beta);
DType parse_dtype(at::ScalarType type);

// y, and what the backward pass needs of it when `saved` is given: a mask where there is one, else z, the value before
// the activation. `out` is resized and written when given.
at::Tensor conv_forward(const Backend&, at::TensorList inputs, const at::Tensor& weight,
                        const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& residual,
                        const ConvParams&, at::Tensor* saved = nullptr, at::Tensor* out = nullptr);

// The gradients with needed[i] set, of (inputs..., weight, bias, residual), in that order and without gaps.
std::vector<at::Tensor> conv_backward(const Backend&, const at::Tensor& grad_output, at::TensorList inputs,
                                      const at::Tensor& weight, const std::optional<at::Tensor>& saved,
                                      const ConvParams&, c10::ArrayRef<bool> needed);

}  // namespace pw
