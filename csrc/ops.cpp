// Schemas, and the operators as seen from a device.
#include "ops.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/Resize.h>
#include <torch/library.h>

#include "shape.h"

TORCH_LIBRARY(pointwise_ext, m) {
#define PW_SCHEMA_ARGS                                                                            \
  "Tensor[] inputs, Tensor weight, Tensor? bias, Tensor? residual, int[] stride, int[] padding, " \
  "int groups, str activation, float alpha, float beta"
  m.def("conv(" PW_SCHEMA_ARGS ") -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("conv_saved(" PW_SCHEMA_ARGS ") -> (Tensor, Tensor)", {at::Tag::pt2_compliant_tag});
  m.def("conv_out(" PW_SCHEMA_ARGS ", Tensor(a!) out) -> ()", {at::Tag::pt2_compliant_tag});
  m.def(
      "conv_backward(Tensor grad_output, Tensor[] inputs, Tensor weight, Tensor? saved, int[] stride, int[] padding, "
      "int groups, str activation, float alpha, float beta, bool[] needed) -> Tensor[]",
      {at::Tag::pt2_compliant_tag});
}

namespace pw {
namespace {

template <class Signature>
auto operator_handle(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

at::Tensor call_conv(PW_CONV_ARGS) {
  static const auto op = operator_handle<at::Tensor(PW_CONV_ARGS)>("pointwise_ext::conv");
  return op.call(PW_CONV_PASS);
}

std::tuple<at::Tensor, at::Tensor> call_conv_saved(PW_CONV_ARGS) {
  static const auto op = operator_handle<std::tuple<at::Tensor, at::Tensor>(PW_CONV_ARGS)>("pointwise_ext::conv_saved");
  return op.call(PW_CONV_PASS);
}

void call_conv_out(PW_CONV_ARGS, at::Tensor& out) {
  static const auto op = operator_handle<void(PW_CONV_ARGS, at::Tensor&)>("pointwise_ext::conv_out");
  op.call(PW_CONV_PASS, out);
}

std::vector<at::Tensor> call_conv_backward(PW_BACKWARD_ARGS) {
  static const auto op = operator_handle<std::vector<at::Tensor>(PW_BACKWARD_ARGS)>("pointwise_ext::conv_backward");
  return op.call(PW_BACKWARD_PASS);
}

at::Tensor device_conv(const Backend& backend, PW_CONV_ARGS) {
  return conv_forward(backend, inputs, weight, bias, residual,
                      {stride, padding, groups, parse_activation(activation, alpha, beta)});
}

std::tuple<at::Tensor, at::Tensor> device_conv_saved(const Backend& backend, PW_CONV_ARGS) {
  at::Tensor saved;
  at::Tensor y = conv_forward(backend, inputs, weight, bias, residual,
                              {stride, padding, groups, parse_activation(activation, alpha, beta)}, &saved);
  return {std::move(y), std::move(saved)};
}

void device_conv_out(const Backend& backend, PW_CONV_ARGS, at::Tensor& out) {
  const ConvParams params{stride, padding, groups, parse_activation(activation, alpha, beta)};
  const Shape shape = check_shape(inputs, weight, bias, residual, params);
  const at::Tensor& like = inputs[0];
  TORCH_CHECK(out.device() == like.device(), "pointwise_conv: out is on ", out.device(), ", expected ", like.device(),
              " as the input's; allocate it there");
  TORCH_CHECK(at::canCast(like.scalar_type(), out.scalar_type()), "pointwise_conv: out has dtype ", out.scalar_type(),
              ", expected one that ", like.scalar_type(), " can be cast to");
  at::native::resize_output(out, shape.output_sizes());
  at::assert_no_internal_overlap(out);
  bool direct = out.scalar_type() == like.scalar_type();
  const auto keep_apart = [&](const at::Tensor& t) {
    at::assert_no_partial_overlap(out, t);
    direct = direct && !out.is_alias_of(t);  // out may be an input, but a kernel writes before it has read all
  };
  for (const at::Tensor& t : inputs) keep_apart(t);
  keep_apart(weight);
  if (bias) keep_apart(*bias);
  if (residual) keep_apart(*residual);
  if (direct)
    conv_forward(backend, inputs, weight, bias, residual, params, nullptr, &out);
  else
    out.copy_(conv_forward(backend, inputs, weight, bias, residual, params));
}

std::vector<at::Tensor> device_conv_backward(const Backend& backend, PW_BACKWARD_ARGS) {
  const c10::SmallVector<bool, kSources + 3> mask(needed.begin(), needed.end());
  return conv_backward(backend, grad_output, inputs, weight, saved,
                       {stride, padding, groups, parse_activation(activation, alpha, beta)}, mask);
}

}  // namespace pw
