// The operators' C++ signatures, shared by every dispatch key.
#pragma once
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "conv.h"

// Schema order of the arguments of conv, conv_saved and conv_out.
#define PW_CONV_ARGS                                                                                             \
  at::TensorList inputs, const at::Tensor &weight, const std::optional<at::Tensor>&bias,                         \
      const std::optional<at::Tensor>&residual, at::IntArrayRef stride, at::IntArrayRef padding, int64_t groups, \
      c10::string_view activation, double alpha, double beta
#define PW_CONV_PASS inputs, weight, bias, residual, stride, padding, groups, activation, alpha, beta

#define PW_BACKWARD_ARGS                                                                                      \
  const at::Tensor &grad_output, at::TensorList inputs, const at::Tensor &weight,                             \
      const std::optional<at::Tensor>&saved, at::IntArrayRef stride, at::IntArrayRef padding, int64_t groups, \
      c10::string_view activation, double alpha, double beta, c10::List<bool> needed
#define PW_BACKWARD_PASS grad_output, inputs, weight, saved, stride, padding, groups, activation, alpha, beta, needed

namespace pw {

// The operators through the dispatcher.
at::Tensor call_conv(PW_CONV_ARGS);
std::tuple<at::Tensor, at::Tensor> call_conv_saved(PW_CONV_ARGS);
void call_conv_out(PW_CONV_ARGS, at::Tensor& out);
std::vector<at::Tensor> call_conv_backward(PW_BACKWARD_ARGS);

// The operators on one device; a registration wraps them with what the device needs, such as a guard.
at::Tensor device_conv(const Backend&, PW_CONV_ARGS);
std::tuple<at::Tensor, at::Tensor> device_conv_saved(const Backend&, PW_CONV_ARGS);
void device_conv_out(const Backend&, PW_CONV_ARGS, at::Tensor& out);
std::vector<at::Tensor> device_conv_backward(const Backend&, PW_BACKWARD_ARGS);

}  // namespace pw
