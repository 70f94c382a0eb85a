#include "conv.h"

#include <ATen/ops/empty.h>

#include "mask.h"
#include "products.h"

namespace pw {
namespace {

struct Forward {
  const Backend& backend;
  const Shape& shape;
  const at::Tensor& like;
  const Activation& activation;
  View y, z, residual;
  Mask mask;
  const char* bias;
  int64_t bias_step;

  // The epilogue's part of a product: outputs starting at out_start, channels starting at `channel`.
  // Filled in place: a Gemm is 2 KB, and a tiny call takes 3 us.
  void epilogue(Gemm& g, const int64_t (&out_start)[3], const Axis& pixels, int64_t channel, int64_t channels) const {
    set_like(g, like, pixel_side(y, channels));
    set_axes(g, pixels, channels);
    const auto place = [&](const View& v) {
      return v.data ? v.at_channel(channel).sampled(out_start, {1, 1, 1}).with_pixels(g.pixels) : Matrix{};
    };
    g.c = place(y), g.z = place(z), g.residual = place(residual);
    g.mask = mask;
    g.bias = bias ? bias + channel * bias_step * y.itemsize : nullptr;
    g.bias_step = bias_step;
    g.bias_on_m = g.pixels == Pixels::on_n;
    g.activation = activation;
  }

  // y = activation(bias + residual) on the frame of outputs that lie in the padding, slab by slab.
  void border() const {
    int64_t start[3] = {0, 0, 0}, size[3] = {shape.out_size[0], shape.out_size[1], shape.out_size[2]};
    const auto fill = [&] {
      if (size[0] * size[1] * size[2] == 0) return;
      Gemm g;
      epilogue(g, start, {{shape.batch, size[0], size[1], size[2]}}, 0, shape.out_channels);
      collapse_pixels(g);
      backend.gemm(&g, 1, like);
    };
    for (int d = 0; d < 3; ++d) {
      const Window& w = shape.window[d];
      start[d] = 0, size[d] = w.low, fill();
      start[d] = w.high, size[d] = shape.out_size[d] - w.high, fill();
      start[d] = w.low, size[d] = w.high - w.low;
    }
  }

  void interior(at::TensorList inputs, const at::Tensor& weight) const {
    const Interior inside(shape);
    if (inside.empty()) return;
    const int64_t in = shape.in_channels / shape.groups, out = shape.out_channels / shape.groups;
    Gemms gemms(shape.groups);
    for (int64_t group = 0; group < shape.groups; ++group) {
      Gemm& g = gemms[group];
      epilogue(g, inside.out_start, inside.pixels(shape.batch), group * out, out);
      for (const Slice& s : slices(inputs, shape.batched ? 1 : 0, group * in, (group + 1) * in)) {
        const Matrix x = inside.of_input(View(inputs[s.source], shape).at_channel(s.begin)).with_pixels(g.pixels);
        const Matrix w = weight_matrix(weight, group * out, s.column, g.pixels == Pixels::on_m);
        g.segment[g.segments++] =
            g.pixels == Pixels::on_m ? Segment{x, w, channel_axis(s.count)} : Segment{w, x, channel_axis(s.count)};
      }
      collapse_pixels(g);
    }
    std::vector<Products> products;
    add_launches(gemms, inputs.size(), products);
    for (const Products& p : products) backend.gemm(p.gemms, p.count, like);
  }
};

}  // namespace

Activation parse_activation(c10::string_view name, double alpha, double beta) {
  static constexpr std::pair<const char*, Act> kNames[] = {{"none", Act::none},
                                                           {"relu", Act::relu},
                                                           {"relu6", Act::relu6},
                                                           {"leaky_relu", Act::leaky_relu},
                                                           {"silu", Act::silu},
                                                           {"gelu", Act::gelu},
                                                           {"gelu_tanh", Act::gelu_tanh},
                                                           {"hardswish", Act::hardswish},
                                                           {"hardsigmoid", Act::hardsigmoid},
                                                           {"sigmoid", Act::sigmoid},
                                                           {"tanh", Act::tanh},
                                                           {"clamp", Act::clamp}};
  for (const auto& [known_name, kind] : kNames)
    if (name == known_name) return {kind, alpha, beta};
  std::string known;
  for (const auto& entry : kNames) known += std::string(known.empty() ? "" : ", ") + entry.first;
  TORCH_CHECK(false, "pointwise_conv: activation is '", std::string(name), "', expected one of ", known);
}

DType parse_dtype(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::f32;
    case at::kDouble:
      return DType::f64;
    case at::kHalf:
      return DType::f16;
    case at::kBFloat16:
      return DType::bf16;
    default:
      TORCH_CHECK(false, "pointwise_conv: input has dtype ", type,
                  ", expected float32, float64, float16 or bfloat16; pointwise_ext.pointwise_conv runs its reference "
                  "for others");
  }
}

at::Tensor conv_forward(const Backend& backend, at::TensorList inputs, const at::Tensor& weight,
                        const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& residual,
                        const ConvParams& params, at::Tensor* saved, at::Tensor* out) {
  const Shape shape = check_shape(inputs, weight, bias, residual, params);
  const at::Tensor& like = inputs[0];
  parse_dtype(like.scalar_type());
  const auto sizes = shape.output_sizes();
  at::Tensor y = out ? *out : empty_in_format_of(like, sizes, shape.batched);
  const View view(y, shape);
  const bool masked = saved && backend.masks && keeps_mask(like.scalar_type(), params);
  if (masked)
    *saved = empty_mask(shape, pixel_side(view, shape.out_channels) == Pixels::on_n, like);
  else if (saved)
    *saved = empty_in_format_of(like, sizes, shape.batched);
  if (y.numel() == 0) return y;

  const Forward forward{backend,
                        shape,
                        like,
                        params.activation,
                        view,
                        saved && !masked ? View(*saved, shape) : View(),
                        residual ? View(*residual, shape) : View(),
                        masked ? view_mask(*saved) : Mask(),
                        bias ? static_cast<const char*>(bias->data_ptr()) : nullptr,
                        bias ? bias->stride(0) : 0};
  if (!shape.interior_is_all()) forward.border();
  forward.interior(inputs, weight);
  return y;
}

}  // namespace pw
