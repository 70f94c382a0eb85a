#include <ATen/ops/clone.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include "conv.h"
#include "mask.h"
#include "products.h"

namespace pw {
namespace {

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
      Gemm g;
      set_like(g, inputs[0], pixel_side(dx_view, s.count));
      set_axes(g, inside.pixels(shape.batch), s.count);
      const Matrix d = gradient(g, channel);
      const Matrix w = weight_matrix(weight, channel, s.column, g.pixels == Pixels::on_n);
      g.segment[g.segments++] =
          g.pixels == Pixels::on_m ? Segment{d, w, channel_axis(out)} : Segment{w, d, channel_axis(out)};
      g.c = dx_view.at_channel(s.begin).with_pixels(g.pixels);
      return g;
    });
  }

  // dW = dZ X^T, the columns of one input; db beside the first columns
  Gemms weight_columns(size_t source, const at::Tensor& dw) const {
    if (dw.numel() == 0 || inside.empty() || shape.batch == 0) return {};
    return of_groups(source, [&](int64_t channel, const Slice& s) {
      Gemm g;
      set_like(g, inputs[0], Pixels::on_k);
      g.m = channel_axis(shape.out_channels / shape.groups), g.n = channel_axis(s.count);
      const Matrix d = gradient(g, channel);
      const Matrix x = inside.of_input(View(inputs[source], shape).at_channel(s.begin)).by_pixel();
      g.segment[g.segments++] = {d, x, inside.pixels(shape.batch)};
      g.c = weight_matrix(dw, channel, s.column, false);
      if (db && s.column == 0) g.row_sums = db + channel * dz.itemsize;
      return g;
    });
  }
};

}  // namespace

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

  ActivationGrad pass;
  pass.dtype = dtype;
  pass.activation = params.activation;
  pass.pixels = {{shape.batch, shape.out_size[0], shape.out_size[1], shape.out_size[2]}};
  pass.channels = shape.out_channels;
  const View saved_view = linear || by_mask ? View() : View(saved, shape);
  pass.dy = View(grad_output, shape).by_pixel(), pass.saved = saved_view.by_pixel();
  if (by_mask) pass.mask = view_mask(saved);
  if (need_bias) pass.db = db.data_ptr();
  const auto make_dz = [&] {  // a tensor of its own
    dz = empty_in_format_of(masked ? like : saved, grad_output.sizes(), shape.batched);
    pass.dz = View(dz, shape).by_pixel();
  };

  std::vector<Gemms> gemms;
  std::vector<Products> products;
  const auto set_products = [&](const Backward& backward, auto collapse) {
    gemms.clear(), products.clear();
    for (size_t i = 0; i < sources; ++i) {
      if (needed[i]) gemms.push_back(backward.input(i, dx[i]));
      if (needed[sources]) gemms.push_back(backward.weight_columns(i, dw));
    }
    collapse(gemms);
    for (const Gemms& g : gemms) add_launches(g, sources, products);
  };
  const auto collapse_each = [](std::vector<Gemms>& all) {
    for (Gemms& of_one : all)
      for (Gemm& g : of_one) collapse_pixels(g);
  };
  const auto chunked = [&] {
    if (!backend.chunks || !backend.chunks(grad_output.nbytes()) || !shape.interior_is_all()) return false;
    ActivationGrad together = pass;
    set_products({shape, inputs, weight, View(grad_output, shape)},
                 [&](std::vector<Gemms>& all) { collapse_together(all, together); });
    return backend.chunked(products, together, like);
  };
  const auto gated = [&] {
    const bool dz_needed = need_residual && !linear, db_beside_dw = dw.defined() && shape.interior_is_all();
    if (!backend.gates || dz_needed || (need_bias && !db_beside_dw)) return false;
    set_products({shape, inputs, weight, View(grad_output, shape), saved_view, pass.mask, params.activation,
                  need_bias ? static_cast<char*>(db.data_ptr()) : nullptr},
                 collapse_each);
    if (backend.one_pass && backend.one_pass(products, pass, like)) return products.clear(), true;
    return !products.empty() && backend.gates(products, pass);
  };

  if (!linear && need_residual) make_dz();
  const bool passes = (need_bias || !linear) && dz.numel() != 0;
  if (dz.numel() != 0 && chunked()) {
    products.clear();
  } else if (!passes || !gated()) {
    if (passes) {  // dZ = dY activation'(saved) and db, in one pass over dY
      if (!linear && !pass.dz.data) make_dz();
      Steps* steps[] = {&pass.dy.row, saved_view.data ? &pass.saved.row : nullptr, linear ? nullptr : &pass.dz.row};
      collapse(pass.pixels, steps);
      backend.activation_grad(pass, like);
    }
    set_products({shape, inputs, weight, View(dz, shape)}, collapse_each);
  }
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
