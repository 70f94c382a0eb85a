// Under torch.autocast all tensors follow the active dtype, as those of nn.Conv2d do.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "ops.h"

namespace pw {
namespace {

// Keeps the cast tensors of one call alive.
template <c10::DeviceType DEVICE>
struct Cast {
  c10::impl::ExcludeDispatchKeyGuard no_autocast{
      c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(DEVICE))};
  std::vector<at::Tensor> inputs;
  at::Tensor weight;
  std::optional<at::Tensor> bias, residual;

  Cast(at::TensorList in, const at::Tensor& w, const std::optional<at::Tensor>& b, const std::optional<at::Tensor>& r)
      : weight(to(w)), bias(to(b)), residual(to(r)) {
    inputs.reserve(in.size());
    for (const at::Tensor& t : in) inputs.push_back(to(t));
  }
  static at::Tensor to(const at::Tensor& t) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(DEVICE), t, DEVICE);
  }
  static std::optional<at::Tensor> to(const std::optional<at::Tensor>& t) {
    return t ? std::make_optional(to(*t)) : std::nullopt;
  }
};

template <c10::DeviceType DEVICE>
at::Tensor autocast_conv(PW_CONV_ARGS) {
  const Cast<DEVICE> c(inputs, weight, bias, residual);
  return call_conv(c.inputs, c.weight, c.bias, c.residual, stride, padding, groups, activation, alpha, beta);
}

template <c10::DeviceType DEVICE>
std::tuple<at::Tensor, at::Tensor> autocast_conv_saved(PW_CONV_ARGS) {
  const Cast<DEVICE> c(inputs, weight, bias, residual);
  return call_conv_saved(c.inputs, c.weight, c.bias, c.residual, stride, padding, groups, activation, alpha, beta);
}

template <c10::DeviceType DEVICE>
void autocast_conv_out(PW_CONV_ARGS, at::Tensor& out) {
  const Cast<DEVICE> c(inputs, weight, bias, residual);
  call_conv_out(c.inputs, c.weight, c.bias, c.residual, stride, padding, groups, activation, alpha, beta, out);
}

template <c10::DeviceType DEVICE>
void implement(torch::Library& m) {
  m.impl("conv", &autocast_conv<DEVICE>);
  m.impl("conv_saved", &autocast_conv_saved<DEVICE>);
  m.impl("conv_out", &autocast_conv_out<DEVICE>);
}

}  // namespace
}  // namespace pw

TORCH_LIBRARY_IMPL(pointwise_ext, AutocastCPU, m) { pw::implement<at::kCPU>(m); }
TORCH_LIBRARY_IMPL(pointwise_ext, AutocastCUDA, m) { pw::implement<at::kCUDA>(m); }
