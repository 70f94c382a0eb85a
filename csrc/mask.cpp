#include "mask.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace pw {
namespace {

std::vector<int64_t> mask_sizes(const Shape& s, bool along_pixels) {
  const auto words = [](int64_t bits) { return (bits + 31) / 32; };
  const int64_t pixels = s.out_size[0] * s.out_size[1] * s.out_size[2];
  if (along_pixels) return {s.out_channels, words(s.batch * pixels)};
  return {s.batch, pixels, words(s.out_channels)};
}

}  // namespace

bool keeps_mask(at::ScalarType dtype, const ConvParams& params) {
  const bool known = dtype == at::kHalf || dtype == at::kBFloat16 || dtype == at::kFloat;
  const auto& padding = params.padding;
  return known && one_bit(params.activation) && params.groups == 1 &&
         std::all_of(padding.begin(), padding.end(), [](int64_t p) { return p == 0; });
}

at::Tensor empty_mask(const Shape& shape, bool along_pixels, const at::Tensor& like) {
  return at::empty(mask_sizes(shape, along_pixels), like.options().dtype(at::kInt));
}

void check_mask(const at::Tensor& mask, const Shape& shape, const at::Tensor& like, const ConvParams& params) {
  TORCH_CHECK(keeps_mask(like.scalar_type(), params),
              "pointwise_conv: saved has dtype int32, as a mask of the forward call, expected ", like.scalar_type(),
              "; masks are those of relu, relu6 and leaky_relu with a slope that is not negative, without padding and "
              "groups, in float16, bfloat16 and float32");
  TORCH_CHECK(mask.device() == like.device(), "pointwise_conv: saved is on ", mask.device(), ", expected ",
              like.device(), " as the input's; move one of them");
  const auto pixels = mask_sizes(shape, true), channels = mask_sizes(shape, false);
  TORCH_CHECK(mask.sizes() == at::IntArrayRef(pixels) || mask.sizes() == at::IntArrayRef(channels),
              "pointwise_conv: saved has shape ", mask.sizes(), ", expected ", at::IntArrayRef(pixels), " or ",
              at::IntArrayRef(channels), ", a mask of the output's ", at::IntArrayRef(shape.output_sizes()),
              "; pass on what conv_saved returned");
}

Mask view_mask(const at::Tensor& mask) {
  return {reinterpret_cast<uint32_t*>(mask.data_ptr<int32_t>()), mask.size(-1), mask.dim() == 2};
}

at::Tensor expand_mask(const at::Tensor& mask, const at::Tensor& dy, bool batched) {
  const bool along_pixels = mask.dim() == 2;
  const at::Tensor places = at::arange(32, mask.options());
  const at::Tensor words = at::bitwise_right_shift(mask.unsqueeze(-1), places).bitwise_and(1).flatten(-2);
  std::vector<int64_t> sizes = dy.sizes().vec();
  if (!batched) sizes.insert(sizes.begin(), 1);
  const int64_t channels = sizes[1];
  sizes.erase(sizes.begin() + 1);
  sizes.insert(along_pixels ? sizes.begin() : sizes.end(), channels);
  const int64_t bits = along_pixels ? dy.numel() / std::max<int64_t>(channels, 1) : channels;
  const at::Tensor all = words.narrow(-1, 0, bits).reshape(sizes).to(dy.scalar_type());
  const at::Tensor placed = all.movedim(along_pixels ? 0 : -1, 1);
  return batched ? placed : placed.squeeze(0);
}

}  // namespace pw
