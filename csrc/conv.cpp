#include "conv.h"

#include <ATen/Context.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "mask.h"
#include "shape.h"
#include "views.h"

namespace pw {
namespace {

using Gemms = c10::SmallVector<Gemm, 1>;

// Pixels become rows of C where channels are the innermost dimension (channels_last), columns otherwise.
Pixels pixel_side(const View& c, int64_t channels) {
  return c.stride[1] == 1 && channels > 1 ? Pixels::on_m : Pixels::on_n;
}

void set_axes(Gemm& g, const Axis& pixels, int64_t channels) {
  (g.pixels == Pixels::on_m ? g.m : g.n) = pixels;
  (g.pixels == Pixels::on_m ? g.n : g.m) = channel_axis(channels);
}

// A product in the dtype of `like`. float32 on CUDA follows PyTorch's switches for convolutions.
Gemm gemm_like(const at::Tensor& like, Pixels pixels) {
  Gemm g;
  g.dtype = parse_dtype(like.scalar_type());
  g.tf32 = like.is_cuda() && g.dtype == DType::f32 && at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
  g.pixels = pixels;
  return g;
}

// Fewer, longer dimensions of pixels wherever all operands allow it.
void collapse_pixels(Gemm& g) {
  Steps* steps[2 * kSources + 4] = {};
  int count = 0;
  const auto add = [&](Matrix& m, bool rows) {
    if (m.data) steps[count++] = rows ? &m.row : &m.col;
  };
  add(g.gate.saved, g.pixels == Pixels::on_m);
  if (g.pixels == Pixels::on_k) {
    add(g.segment[0].a, false), add(g.segment[0].b, true);
    return collapse(g.segment[0].k, steps);
  }
  const bool rows = g.pixels == Pixels::on_m;
  for (int i = 0; i < g.segments; ++i) add(rows ? g.segment[i].a : g.segment[i].b, rows);
  add(g.c, rows), add(g.z, rows), add(g.residual, rows);
  collapse(rows ? g.m : g.n, steps);
}

// W of one group as the operand next to the pixels': (out, in) seen from the side that `transposed` asks for.
Matrix weight_matrix(const at::Tensor& w, int64_t row, int64_t column, bool transposed) {
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

c10::SmallVector<Slice, kSources> slices(at::TensorList inputs, int channel, int64_t begin, int64_t end) {
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
void add_launches(const Gemms& gemms, size_t inputs, std::vector<Products>& to) {
  const int64_t count = int64_t(gemms.size()), together = inputs == 1 ? count : 1;
  for (int64_t i = 0; i < count; i += together) to.push_back({&gemms[i], together});
}

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
  Gemm epilogue(const int64_t (&out_start)[3], const Axis& pixels, int64_t channel, int64_t channels) const {
    Gemm g = gemm_like(like, pixel_side(y, channels));
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
    return g;
  }

  // y = activation(bias + residual) on the frame of outputs that lie in the padding, slab by slab.
  void border() const {
    int64_t start[3] = {0, 0, 0}, size[3] = {shape.out_size[0], shape.out_size[1], shape.out_size[2]};
    const auto fill = [&] {
      if (size[0] * size[1] * size[2] == 0) return;
      Gemm g = epilogue(start, {{shape.batch, size[0], size[1], size[2]}}, 0, shape.out_channels);
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
      Gemm& g = gemms[group] = epilogue(inside.out_start, inside.pixels(shape.batch), group * out, out);
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

// The products of a backward pass. Each takes dZ as it is in memory, or makes it of dY by a gate.
struct Backward {
  const Shape& shape;
  at::TensorList inputs;
  const at::Tensor& weight;
  View dz;     // dY where there is a gate
  View saved;  // what the gate reads, if there is one,
  Mask mask;   // or the mask in its place
  Activation activation;
  char* db = nullptr;  // where the products of dW write it, if they are to
  Interior inside{shape};

  // dZ of the channels from `channel` on as an operand
  Matrix gradient(Gemm& g, int64_t channel) const {
    const auto place = [&](const View& v) { return inside.of_output(v).at_channel(channel).with_pixels(g.pixels); };
    if (saved.data || mask.words) g.gate = {place(saved), activation, mask};
    return place(dz);
  }

  // Calls add(g, group, slice) for the part of every group that lies in one input.
  template <class Add>
  Gemms of_groups(size_t source, Add add) const {
    const int64_t in = shape.in_channels / shape.groups;
    Gemms gemms;
    for (int64_t group = 0; group < shape.groups; ++group)
      for (const Slice& s : slices(inputs, shape.batched ? 1 : 0, group * in, (group + 1) * in))
        if (s.source == source) gemms.push_back(add(group * shape.out_channels / shape.groups, s));
    return gemms;
  }

  // dX = W^T dZ, for one input
  Gemms input(size_t source, const at::Tensor& dx) const {
    if (dx.numel() == 0 || inside.empty()) return {};
    const int64_t out = shape.out_channels / shape.groups;
    const View dx_view = inside.of_input(View(dx, shape));
    return of_groups(source, [&](int64_t channel, const Slice& s) {
      Gemm g = gemm_like(inputs[0], pixel_side(dx_view, s.count));
      set_axes(g, inside.pixels(shape.batch), s.count);
      const Matrix d = gradient(g, channel);
      const Matrix w = weight_matrix(weight, channel, s.column, g.pixels == Pixels::on_n);
      g.segment[g.segments++] =
          g.pixels == Pixels::on_m ? Segment{d, w, channel_axis(out)} : Segment{w, d, channel_axis(out)};
      g.c = dx_view.at_channel(s.begin).with_pixels(g.pixels);
      collapse_pixels(g);
      return g;
    });
  }

  // dW = dZ X^T, the columns of one input; db beside the first columns
  Gemms weight_columns(size_t source, const at::Tensor& dw) const {
    if (dw.numel() == 0 || inside.empty() || shape.batch == 0) return {};
    return of_groups(source, [&](int64_t channel, const Slice& s) {
      Gemm g = gemm_like(inputs[0], Pixels::on_k);
      g.m = channel_axis(shape.out_channels / shape.groups), g.n = channel_axis(s.count);
      const Matrix d = gradient(g, channel);
      const Matrix x = inside.of_input(View(inputs[source], shape).at_channel(s.begin)).by_pixel();
      g.segment[g.segments++] = {d, x, inside.pixels(shape.batch)};
      g.c = weight_matrix(dw, channel, s.column, false);
      if (db && s.column == 0) g.row_sums = db + channel * dz.itemsize;
      collapse_pixels(g);
      return g;
    });
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

std::vector<at::Tensor> conv_backward(const Backend& backend, const at::Tensor& grad_output, at::TensorList inputs,
                                      const at::Tensor& weight, const std::optional<at::Tensor>& given,
                                      const ConvParams& params, c10::ArrayRef<bool> needed) {
  const size_t sources = inputs.size();
  TORCH_CHECK(needed.size() == sources + 3, "pointwise_conv: needed has ", needed.size(), " entries, expected ",
              sources + 3, ", one per input and then weight, bias, residual");
  // The checks of a residual are those of a gradient of the output, and of the saved output.
  Shape shape = check_shape(inputs, weight, std::nullopt, grad_output, params);
  const bool linear = params.activation.kind == Act::none;
  TORCH_CHECK(linear || given,
              "pointwise_conv: saved is None, expected the output (or the value before the "
              "activation) of the forward call, which activation's derivative needs");
  const at::Tensor& like = inputs[0];
  const bool masked = !linear && is_mask(*given), by_mask = masked && backend.masks;
  at::Tensor saved;
  if (masked) {
    check_mask(*given, shape, like, params);
    saved = by_mask ? given->contiguous() : expand_mask(*given, grad_output, shape.batched);
  } else if (!linear) {
    check_shape(inputs, weight, std::nullopt, given, params);
    saved = *given;
  }
  const DType dtype = parse_dtype(like.scalar_type());
  const bool need_bias = needed[sources + 1], need_residual = needed[sources + 2];

  const Interior inside(shape);
  std::vector<at::Tensor> dx(sources);
  at::Tensor dw, db, dz = grad_output;
  for (size_t i = 0; i < sources; ++i) {
    if (!needed[i]) continue;
    dx[i] = empty_in_format_of(inputs[i], inputs[i].sizes(), shape.batched);
    if (inside.empty() || !shape.covers_input() || shape.out_channels == 0) dx[i].zero_();
  }
  if (needed[sources]) dw = inside.empty() || shape.batch == 0 ? at::zeros_like(weight) : at::empty_like(weight);
  if (need_bias) db = at::empty({shape.out_channels}, like.options());
  if (need_bias && dz.numel() == 0) db.zero_();

  std::vector<Gemms> gemms;
  std::vector<Products> products;
  const auto set_products = [&](const Backward& backward) {
    gemms.clear(), products.clear();
    for (size_t i = 0; i < sources; ++i) {
      if (needed[i]) gemms.push_back(backward.input(i, dx[i]));
      if (needed[sources]) gemms.push_back(backward.weight_columns(i, dw));
    }
    for (const Gemms& g : gemms) add_launches(g, sources, products);
  };
  const View saved_view = linear || by_mask ? View() : View(saved, shape);
  const Mask mask = by_mask ? view_mask(saved) : Mask();
  const auto gated = [&](const ActivationGrad& pass) {
    const bool dz_needed = need_residual && !linear, db_beside_dw = dw.defined() && shape.interior_is_all();
    if (!backend.gates || dz_needed || (need_bias && !db_beside_dw)) return false;
    set_products({shape, inputs, weight, View(grad_output, shape), saved_view, mask, params.activation,
                  need_bias ? static_cast<char*>(db.data_ptr()) : nullptr});
    if (backend.one_pass && backend.one_pass(products, pass, like)) return products.clear(), true;
    return !products.empty() && backend.gates(products, pass);
  };

  bool done = false;
  if ((need_bias || !linear) && dz.numel() != 0) {
    ActivationGrad pass;
    pass.dtype = dtype;
    pass.activation = params.activation;
    pass.pixels = {{shape.batch, shape.out_size[0], shape.out_size[1], shape.out_size[2]}};
    pass.channels = shape.out_channels;
    pass.dy = View(grad_output, shape).by_pixel();
    pass.saved = saved_view.by_pixel(), pass.mask = mask;
    if (need_bias) pass.db = db.data_ptr();
    done = gated(pass);
    if (!done) {  // dZ = dY activation'(saved) and db, in one pass over dY
      if (!linear) dz = empty_in_format_of(masked ? like : saved, grad_output.sizes(), shape.batched);
      if (!linear) pass.dz = View(dz, shape).by_pixel();
      Steps* steps[] = {&pass.dy.row, saved_view.data ? &pass.saved.row : nullptr, linear ? nullptr : &pass.dz.row};
      collapse(pass.pixels, steps);
      backend.activation_grad(pass, like);
    }
  }
  if (!done) set_products({shape, inputs, weight, View(dz, shape)});
  for (const Products& p : products) backend.gemm(p.gemms, p.count, like);

  std::vector<at::Tensor> grads;
  grads.reserve(needed.size());
  for (size_t i = 0; i < sources; ++i)
    if (needed[i]) grads.push_back(dx[i]);
  if (needed[sources]) grads.push_back(dw);
  if (need_bias) grads.push_back(db);
  if (need_residual) grads.push_back(linear ? dz.clone() : dz);
  return grads;
}

}  // namespace pw
