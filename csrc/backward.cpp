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
  at::TensorList sampled;  // the inputs' pixels that outputs read, if dW has copies of them
  View dz;                 // dY where there is a gate
  Mask mask;               // what it reads
  Activation activation;
  char* db = nullptr;  // where the products of dW write it, if they are to
  Interior inside{shape};

  // dZ of the channels from `channel` on as an operand
  Matrix gradient(Gemm& g, int64_t channel) const {
    if (mask.words) g.gate = {activation, mask};
    return inside.of_output(dz).at_channel(channel).with_pixels(g.pixels);
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
      const View samples =
          sampled.empty() ? inside.of_input(View(inputs[source], shape)) : View(sampled[source], shape);
      const Matrix x = samples.at_channel(s.begin).by_pixel();
      g.segment[g.segments++] = {d, x, inside.pixels(shape.batch)};
      g.c = weight_matrix(dw, channel, s.column, false);
      if (db && s.column == 0) g.row_sums = db + channel * dz.itemsize;
      return g;
    });
  }
};

// One call: what is needed is allocated, then computed in the way that moves the fewest bytes of dZ.
class BackwardPass {
 public:
  // `saved`: the tensor that the derivative is taken from, a mask where the backend reads those; undefined without
  // activation. `dz_like`: in whose memory format dZ is
  BackwardPass(const Backend& backend, const Shape& shape, const at::Tensor& dy, at::TensorList inputs,
               const at::Tensor& weight, const at::Tensor& saved, const at::Tensor& dz_like,
               const Activation& activation, c10::ArrayRef<bool> needed)
      : backend_(backend),
        shape_(shape),
        dy_(dy),
        inputs_(inputs),
        weight_(weight),
        activation_(activation),
        needed_(needed),
        sources_(inputs.size()),
        linear_(!saved.defined()),
        dz_like_(dz_like) {
    allocate();
    pass_.dtype = parse_dtype(inputs[0].scalar_type());
    pass_.activation = activation;
    pass_.pixels = {{shape.batch, shape.out_size[0], shape.out_size[1], shape.out_size[2]}};
    pass_.channels = shape.out_channels;
    pass_.dy = View(dy, shape).by_pixel();
    if (!linear_ && is_mask(saved)) pass_.mask = view_mask(saved);
    if (!linear_ && !is_mask(saved)) saved_ = View(saved, shape);
    pass_.saved = saved_.by_pixel();
    if (need_bias()) pass_.db = db_.data_ptr();
  }

  void run() {
    if (!linear_ && need_residual()) make_dz();
    if (dy_.numel() != 0 && in_chunks()) return;
    const bool passes = dy_.numel() != 0 && (need_bias() || !linear_);
    if (!passes || !gated()) {
      if (passes) derive();
      sample_inputs();
      set_products({shape_, inputs_, weight_, sampled_, View(dz_.defined() ? dz_ : dy_, shape_)}, collapse_each);
    }
    for (const Products& p : products_) backend_.gemm(p.gemms, p.count, inputs_[0]);
  }

  std::vector<at::Tensor> results() const {
    std::vector<at::Tensor> grads;
    grads.reserve(needed_.size());
    for (size_t i = 0; i < sources_; ++i)
      if (needed_[i]) grads.push_back(dx_[i]);
    if (need_weight()) grads.push_back(dw_);
    if (need_bias()) grads.push_back(db_);
    if (need_residual()) grads.push_back(linear_ ? dy_.clone() : dz_);
    return grads;
  }

 private:
  bool need_weight() const { return needed_[sources_]; }
  bool need_bias() const { return needed_[sources_ + 1]; }
  bool need_residual() const { return needed_[sources_ + 2]; }

  void allocate() {
    const bool none = Interior(shape_).empty();
    dx_.resize(sources_);
    for (size_t i = 0; i < sources_; ++i) {
      if (!needed_[i]) continue;
      dx_[i] = empty_in_format_of(inputs_[i], inputs_[i].sizes(), shape_.batched);
      if (none || !shape_.covers_input() || shape_.out_channels == 0) dx_[i].zero_();
    }
    if (need_weight()) dw_ = none || shape_.batch == 0 ? at::zeros_like(weight_) : at::empty_like(weight_);
    if (need_bias()) db_ = at::empty({shape_.out_channels}, inputs_[0].options());
    if (need_bias() && dy_.numel() == 0) db_.zero_();
  }

  void make_dz() {
    dz_ = empty_in_format_of(dz_like_, dy_.sizes(), shape_.batched);
    pass_.dz = View(dz_, shape_).by_pixel();
  }

  template <class Collapse>
  void set_products(const Backward& backward, Collapse collapse) {
    gemms_.clear(), products_.clear();
    for (size_t i = 0; i < sources_; ++i) {
      if (needed_[i]) gemms_.push_back(backward.input(i, dx_[i]));
      if (need_weight()) gemms_.push_back(backward.weight_columns(i, dw_));
    }
    collapse(gemms_);
    for (const Gemms& g : gemms_) add_launches(g, sources_, products_);
  }
  static void collapse_each(std::vector<Gemms>& all) {
    for (Gemms& of_one : all)
      for (Gemm& g : of_one) collapse_pixels(g);
  }

  // All of it chunk by chunk of pixels: dZ stays in the caches. False: it is not done.
  bool in_chunks() {
    if (!backend_.chunks || !backend_.chunks(dy_.nbytes()) || !shape_.interior_is_all()) return false;
    ActivationGrad together = pass_;
    set_products({shape_, inputs_, weight_, {}, View(dy_, shape_)},
                 [&](std::vector<Gemms>& all) { collapse_together(all, together); });
    return backend_.chunked(products_, together, inputs_[0]);
  }

  // dZ is dY or made of it, by a mask, by each product: it never lies in memory. False: it has to.
  bool gated() {
    const bool dz_needed = need_residual() && !linear_, db_beside_dw = dw_.defined() && shape_.interior_is_all();
    if (!backend_.gates || dz_needed || (need_bias() && !db_beside_dw)) return false;
    if (!linear_ && !pass_.mask.words) return false;
    set_products({shape_,
                  inputs_,
                  weight_,
                  {},
                  View(dy_, shape_),
                  pass_.mask,
                  activation_,
                  need_bias() ? static_cast<char*>(db_.data_ptr()) : nullptr},
                 collapse_each);
    return !products_.empty() && backend_.gates(products_, pass_);
  }

  // dZ = dY activation'(saved) and db, in one pass over dY
  void derive() {
    if (!linear_ && !dz_.defined()) make_dz();
    Steps* steps[] = {&pass_.dy.row, saved_.data ? &pass_.saved.row : nullptr, linear_ ? nullptr : &pass_.dz.row};
    collapse(pass_.pixels, steps);
    backend_.activation_grad(pass_, inputs_[0]);
  }

  // Copies for dW of a layer with a stride: as long runs as the gradient's, in place of one for each row of an image.
  void sample_inputs() {
    const int64_t* stride = shape_.stride;
    if (!backend_.samples || !need_weight() || std::max({stride[0], stride[1], stride[2]}) == 1) return;
    const Interior inside(shape_);
    if (inside.empty()) return;
    for (const at::Tensor& input : inputs_) {
      at::Tensor pixels = input;
      for (int i = 3 - shape_.spatial; i < 3; ++i)
        pixels = pixels.slice(i - 3, inside.in_start[i], inside.in_start[i] + (inside.size[i] - 1) * stride[i] + 1,
                              stride[i]);
      sampled_.push_back(empty_in_format_of(input, pixels.sizes(), shape_.batched).copy_(pixels));
    }
  }

  const Backend& backend_;
  const Shape& shape_;
  const at::Tensor& dy_;
  const at::TensorList inputs_;
  const at::Tensor& weight_;
  const Activation activation_;
  const c10::ArrayRef<bool> needed_;
  const size_t sources_;
  const bool linear_;
  const at::Tensor& dz_like_;
  std::vector<at::Tensor> dx_, sampled_;
  at::Tensor dw_, db_, dz_;
  View saved_;
  ActivationGrad pass_;
  std::vector<Gemms> gemms_;
  std::vector<Products> products_;
};

}  // namespace

std::vector<at::Tensor> conv_backward(const Backend& backend, const at::Tensor& grad_output, at::TensorList inputs,
                                      const at::Tensor& weight, const std::optional<at::Tensor>& given,
                                      const ConvParams& params, c10::ArrayRef<bool> needed) {
  TORCH_CHECK(needed.size() == inputs.size() + 3, "pointwise_conv: needed has ", needed.size(), " entries, expected ",
              inputs.size() + 3, ", one per input and then weight, bias, residual");
  // The checks of a residual are those of a gradient of the output, and of the saved output.
  const Shape shape = check_shape(inputs, weight, std::nullopt, grad_output, params);
  const bool linear = params.activation.kind == Act::none;
  TORCH_CHECK(linear || given,
              "pointwise_conv: saved is None, expected the output (or the value before the "
              "activation) of the forward call, which activation's derivative needs");
  at::Tensor saved;
  const bool masked = !linear && is_mask(*given);
  if (masked) {
    check_mask(*given, shape, inputs[0], params);
    saved = backend.masks ? given->contiguous() : expand_mask(*given, grad_output, shape.batched);
  } else if (!linear) {
    check_shape(inputs, weight, std::nullopt, given, params);
    saved = *given;
  }
  BackwardPass pass(backend, shape, grad_output, inputs, weight, saved, masked || linear ? inputs[0] : saved,
                    params.activation, needed);
  pass.run();
  return pass.results();
}

}  // namespace pw
