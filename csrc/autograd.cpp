// Derivatives: one torch::autograd::Function whose backward is the operator conv_backward, or, where the gradient is
// itself to be differentiated, the same formulas in ATen's differentiable operators.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include "mask.h"
#include "ops.h"

namespace pw {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// All arguments that are not tensors, as one value: Function::apply looks for tensors in every list it is given.
struct Options : torch::CustomClassHolder {
  std::vector<int64_t> stride, padding;
  int64_t groups;
  std::string activation;
  double alpha, beta;
  bool bias = false, residual = false;  // which of the optional tensors were given

  Options(at::IntArrayRef stride, at::IntArrayRef padding, int64_t groups, c10::string_view activation, double alpha,
          double beta)
      : stride(stride.vec()),
        padding(padding.vec()),
        groups(groups),
        activation(activation),
        alpha(alpha),
        beta(beta) {}
  Activation parsed() const { return parse_activation(activation, alpha, beta); }
};

// dz = dy activation'(saved), differentiable in both; a mask is constant, as is the derivative that it tells of.
at::Tensor differentiable_activation_grad(const Options& options, const at::Tensor& dy, const at::Tensor& given,
                                          bool batched) {
  const at::Tensor saved = given.defined() && is_mask(given) ? expand_mask(given, dy, batched) : given;
  switch (options.parsed().kind) {
    case Act::none:
      return dy;
    case Act::relu:
      return at::threshold_backward(dy, saved, 0);
    case Act::relu6:
      return at::hardtanh_backward(dy, saved, 0, 6);
    case Act::leaky_relu:
      return at::leaky_relu_backward(dy, saved, options.alpha, /*self_is_result=*/false);
    case Act::silu: {
      const at::Tensor s = at::sigmoid(saved);
      return dy * s * (1 + saved * (1 - s));
    }
    case Act::gelu:
      return at::gelu_backward(dy, saved, "none");
    case Act::gelu_tanh:
      return at::gelu_backward(dy, saved, "tanh");
    case Act::hardswish:
      return at::hardswish_backward(dy, saved);
    case Act::hardsigmoid:
      // ATen's hardsigmoid_backward has no derivative.
      return at::where(at::logical_and(saved > -3, saved < 3), dy / 6, 0);
    case Act::sigmoid:
      return at::sigmoid_backward(dy, saved);
    case Act::tanh:
      return at::tanh_backward(dy, saved);
    case Act::clamp:
      return at::where(at::logical_and(saved >= options.alpha, saved <= options.beta), dy, 0);
  }
  return dy;
}

// The gradients with needed[i] set, without gaps, from ATen's convolution_backward on the concatenated inputs.
variable_list differentiable_backward(const at::Tensor& dz, at::TensorList inputs, const at::Tensor& weight,
                                      const Options& options, at::ArrayRef<bool> needed) {
  const size_t sources = inputs.size();
  const int64_t spatial = weight.dim() - 2;
  const bool batched = inputs[0].dim() == weight.dim();
  const auto expand = [&](const std::vector<int64_t>& v) {
    return v.size() == 1 ? std::vector<int64_t>(spatial, v[0]) : v;
  };
  const int64_t channel = batched ? 1 : 0;
  at::Tensor x = sources == 1 ? inputs[0] : at::cat(inputs, channel);
  const bool need_x = std::any_of(needed.begin(), needed.begin() + sources, [](bool b) { return b; });
  auto [dx, dw, db] = at::convolution_backward(
      batched ? dz : dz.unsqueeze(0), batched ? x : x.unsqueeze(0), weight, at::IntArrayRef{weight.size(0)},
      expand(options.stride), expand(options.padding), std::vector<int64_t>(spatial, 1), /*transposed=*/false,
      std::vector<int64_t>(spatial, 0), options.groups, {need_x, needed[sources], needed[sources + 1]});
  if (need_x && !batched) dx = dx.squeeze(0);
  variable_list grads;
  int64_t start = 0;
  for (size_t i = 0; i < sources; ++i) {
    const int64_t channels = inputs[i].size(channel);
    if (needed[i]) grads.push_back(sources == 1 ? dx : dx.narrow(channel, start, channels));
    start += channels;
  }
  if (needed[sources]) grads.push_back(dw);
  if (needed[sources + 1]) grads.push_back(db);
  if (needed[sources + 2]) grads.push_back(dz);
  return grads;
}

class Conv : public torch::autograd::Function<Conv> {
 public:
  // Returns y, and z as a second output where the derivative is taken from it: as outputs of this very node both stay
  // attached to the graph, so that a gradient's gradient flows through what was saved. A mask needs none.
  static variable_list forward(AutogradContext* ctx, at::TensorList inputs, const at::Tensor& weight,
                               const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& residual,
                               const c10::intrusive_ptr<Options>& options) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto& [stride, padding, groups, activation, alpha, beta] = std::tie(
        options->stride, options->padding, options->groups, options->activation, options->alpha, options->beta);
    const Activation parsed = options->parsed();
    variable_list outputs;
    at::Tensor mask;
    if (inputs[0].is_cuda() && keeps_mask(inputs[0].scalar_type(), {stride, padding, groups, parsed})) {
      auto [y, bits] = call_conv_saved(PW_CONV_PASS);
      outputs = {y}, mask = bits;
    } else if (saves_z(parsed)) {
      auto [y, z] = call_conv_saved(PW_CONV_PASS);
      outputs = {y, z};
    } else {
      outputs = {call_conv(PW_CONV_PASS)};
    }
    variable_list saved(inputs.begin(), inputs.end());
    saved.push_back(weight);
    saved.push_back(parsed.kind == Act::none ? at::Tensor() : mask.defined() ? mask : outputs.back());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["options"] = c10::IValue::make_capsule(options);  // one entry: each costs a hash map's node
    ctx->set_materialize_grads(false);
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    const auto holder = c10::static_intrusive_pointer_cast<Options>(ctx->saved_data["options"].toCapsule());
    const Options& options = *holder;
    const variable_list all = ctx->get_saved_variables();
    const size_t sources = all.size() - 2;
    const at::TensorList inputs(all.data(), sources);
    const at::Tensor &weight = all[sources], &saved = all[sources + 1];
    const bool linear = !saved.defined();

    // Edges exist for the tensors that were given: inputs, weight, then bias and residual if present.
    c10::SmallVector<bool, kSources + 3> needed(sources + 3, false);
    size_t edge = 0;
    for (; edge <= sources; ++edge) needed[edge] = ctx->needs_input_grad(edge);
    if (options.bias) needed[sources + 1] = ctx->needs_input_grad(edge++);
    if (options.residual) needed[sources + 2] = ctx->needs_input_grad(edge++);

    variable_list result(sources + 4);  // one per argument of forward
    const at::Tensor &dy = grad_outputs[0], dz_more = grad_outputs.size() > 1 ? grad_outputs[1] : at::Tensor();
    if (!dy.defined() && !dz_more.defined()) return result;
    const c10::SmallVector<bool, kSources + 3> filled = needed;

    variable_list grads;
    if (dz_more.defined()) {  // a second derivative, which reached z directly
      const bool batched = inputs[0].dim() == weight.dim();
      at::Tensor dz = dy.defined() ? differentiable_activation_grad(options, dy, saved, batched) + dz_more : dz_more;
      grads = differentiable_backward(dz, inputs, weight, options, needed);
    } else {
      const bool pass = linear && needed[sources + 2];  // the residual's gradient is dy itself
      if (pass) needed[sources + 2] = false;
      if (std::any_of(needed.begin(), needed.end(), [](bool b) { return b; }))
        grads = call_conv_backward(dy, inputs, weight, linear ? std::nullopt : std::make_optional(saved),
                                   options.stride, options.padding, options.groups, options.activation, options.alpha,
                                   options.beta, c10::List<bool>(c10::ArrayRef<bool>(needed)));
      if (pass) grads.push_back(dy);
    }
    auto next = grads.begin();
    for (size_t i = 0; i < filled.size(); ++i)
      if (filled[i]) result[i] = *next++;
    return result;
  }
};

bool needs_grad(const at::Tensor& t) { return t.defined() && t.requires_grad(); }
bool needs_grad(const std::optional<at::Tensor>& t) { return t && needs_grad(*t); }
bool needs_grad(at::TensorList list) {
  return std::any_of(list.begin(), list.end(), [](const at::Tensor& t) { return needs_grad(t); });
}
template <class... Tensors>
bool any_needs_grad(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (needs_grad(tensors) || ...);
}

at::Tensor autograd_conv(PW_CONV_ARGS) {
  if (any_needs_grad(inputs, weight, bias, residual)) {
    auto options = c10::make_intrusive<Options>(stride, padding, groups, activation, alpha, beta);
    options->bias = bias.has_value(), options->residual = residual.has_value();
    return Conv::apply(inputs, weight, bias, residual, options)[0];
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_conv(PW_CONV_PASS);
}

std::tuple<at::Tensor, at::Tensor> autograd_conv_saved(PW_CONV_ARGS) {
  TORCH_CHECK(!any_needs_grad(inputs, weight, bias, residual),
              "pointwise_ext::conv_saved has no derivative of its own; call pointwise_ext::conv, which saves what its "
              "backward needs, or use torch.no_grad()");
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_conv_saved(PW_CONV_PASS);
}

void autograd_conv_out(PW_CONV_ARGS, at::Tensor& out) {
  TORCH_CHECK(!any_needs_grad(inputs, weight, bias, residual, out),
              "pointwise_conv: out was given and an argument requires grad, expected neither or one of the two; "
              "drop out= or call under torch.no_grad()");
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    call_conv_out(PW_CONV_PASS, out);
  }
  torch::autograd::impl::bump_version(out);
}

std::vector<at::Tensor> autograd_conv_backward(PW_BACKWARD_ARGS) {
  if (any_needs_grad(grad_output, inputs, weight, saved)) {
    const Options options(stride, padding, groups, activation, alpha, beta);
    const at::Tensor dz = differentiable_activation_grad(options, grad_output, saved.value_or(at::Tensor()),
                                                         inputs[0].dim() == weight.dim());
    const c10::SmallVector<bool, kSources + 3> mask(needed.begin(), needed.end());
    return differentiable_backward(dz, inputs, weight, options, mask);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_conv_backward(PW_BACKWARD_PASS);
}

}  // namespace
}  // namespace pw

TORCH_LIBRARY_IMPL(pointwise_ext, Autograd, m) {
  m.impl("conv", &pw::autograd_conv);
  m.impl("conv_saved", &pw::autograd_conv_saved);
  m.impl("conv_out", &pw::autograd_conv_out);
  m.impl("conv_backward", &pw::autograd_conv_backward);
}
