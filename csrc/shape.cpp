#include "shape.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <ATen/ops/empty_strided.h>

namespace pw {
namespace {

constexpr const char* kOp = "pointwise_conv: ";

void check_same(const at::Tensor& t, const char* name, const at::Tensor& input) {
  TORCH_CHECK(t.scalar_type() == input.scalar_type(), kOp, name, " has dtype ", t.scalar_type(), ", expected ",
              input.scalar_type(), " as the input's; convert one of them, or use torch.autocast");
  TORCH_CHECK(t.device() == input.device(), kOp, name, " is on ", t.device(), ", expected ", input.device(),
              " as the input's; move one of them");
  TORCH_CHECK(t.layout() == at::kStrided, kOp, name, " has layout ", t.layout(), ", expected a strided tensor; call ",
              "to_dense()");
}

int64_t per_dimension(at::IntArrayRef values, int dimension, int spatial, const char* name) {
  TORCH_CHECK(values.size() == 1 || int(values.size()) == spatial, kOp, name, " has ", values.size(),
              " entries, expected 1 or ", spatial, ", one per spatial dimension of the weight");
  return values[values.size() == 1 ? 0 : dimension];
}

Window window(int64_t in, int64_t out, int64_t stride, int64_t padding) {
  if (in == 0 || out == 0) return {0, 0, 0};
  const int64_t low = (padding + stride - 1) / stride, high = std::min(out, (in - 1 + padding) / stride + 1);
  return {std::min(low, high), high, low * stride - padding};
}

}  // namespace

bool Shape::interior_is_all() const {
  for (int i = 3 - spatial; i < 3; ++i)
    if (window[i].low != 0 || window[i].high != out_size[i]) return false;
  return true;
}

bool Shape::covers_input() const {
  for (int i = 3 - spatial; i < 3; ++i)
    if (window[i].start != 0 || (stride[i] != 1 && in_size[i] > 1) || window[i].high - window[i].low != in_size[i])
      return false;
  return true;
}

std::vector<int64_t> Shape::output_sizes() const {
  std::vector<int64_t> sizes;
  sizes.reserve(5);
  if (batched) sizes.push_back(batch);
  sizes.push_back(out_channels);
  sizes.insert(sizes.end(), out_size + 3 - spatial, out_size + 3);
  return sizes;
}

Shape check_shape(at::TensorList inputs, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  const std::optional<at::Tensor>& residual, const ConvParams& params) {
  Shape s;
  TORCH_CHECK(!inputs.empty() && inputs.size() <= size_t(kSources), kOp, "got ", inputs.size(),
              " inputs, expected 1 to ", kSources, "; concatenate some of them first");
  const at::Tensor& first = inputs[0];
  s.spatial = int(weight.dim()) - 2;
  TORCH_CHECK(s.spatial >= 1 && s.spatial <= 3, kOp, "weight has shape ", weight.sizes(),
              ", expected (out_channels, in_channels / groups, 1, ...) with 1 to 3 trailing ones");
  for (int i = 0; i < s.spatial; ++i)
    TORCH_CHECK(weight.size(2 + i) == 1, kOp, "weight has shape ", weight.sizes(),
                ", expected a kernel of size 1; use torch.nn.functional.conv", s.spatial, "d for larger kernels");
  s.batched = first.dim() == s.spatial + 2;
  TORCH_CHECK(s.batched || first.dim() == s.spatial + 1, kOp, "input has shape ", first.sizes(), ", expected ",
              s.spatial + 2, " dimensions (N, C, ...) or ", s.spatial + 1, " unbatched, for a weight of shape ",
              weight.sizes());
  const int channel = s.batched ? 1 : 0;

  s.in_channels = 0;
  for (const at::Tensor& t : inputs) {
    check_same(t, "input", first);
    TORCH_CHECK(t.dim() == first.dim(), kOp, "inputs have ", first.dim(), " and ", t.dim(),
                " dimensions, expected the same number");
    for (int64_t i = 0; i < t.dim(); ++i)
      TORCH_CHECK(i == channel || t.size(i) == first.size(i), kOp, "inputs have shapes ", first.sizes(), " and ",
                  t.sizes(), ", expected equal sizes in every dimension but the channels'");
    s.in_channels += t.size(channel);
  }
  check_same(weight, "weight", first);

  s.groups = params.groups;
  s.out_channels = weight.size(0);
  TORCH_CHECK(s.groups > 0, kOp, "groups is ", s.groups, ", expected at least 1");
  TORCH_CHECK(s.out_channels % s.groups == 0, kOp, "weight has ", s.out_channels, " output channels, expected a ",
              "multiple of groups = ", s.groups);
  TORCH_CHECK(s.in_channels == weight.size(1) * s.groups, kOp, "input has ", s.in_channels, " channels",
              inputs.size() > 1 ? " in all" : "", ", expected ", weight.size(1) * s.groups, " for a weight of shape ",
              weight.sizes(), " and groups = ", s.groups);

  s.batch = s.batched ? first.size(0) : 1;
  for (int i = 0; i < s.spatial; ++i) {
    const int d = 3 - s.spatial + i;
    s.stride[d] = per_dimension(params.stride, i, s.spatial, "stride");
    s.padding[d] = per_dimension(params.padding, i, s.spatial, "padding");
    TORCH_CHECK(s.stride[d] >= 1, kOp, "stride is ", params.stride, ", expected at least 1");
    TORCH_CHECK(s.padding[d] >= 0, kOp, "padding is ", params.padding, ", expected at least 0");
    const int64_t in = s.in_size[d] = first.size(channel + 1 + i), padded = in + 2 * s.padding[d];
    s.out_size[d] = padded == 0 ? 0 : (padded - 1) / s.stride[d] + 1;
  }
  for (int d = 0; d < 3; ++d) s.window[d] = window(s.in_size[d], s.out_size[d], s.stride[d], s.padding[d]);

  if (bias) {
    check_same(*bias, "bias", first);
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == s.out_channels, kOp, "bias has shape ", bias->sizes(),
                ", expected [", s.out_channels, "], one per output channel");
  }
  if (residual) {
    check_same(*residual, "residual", first);
    bool same = residual->dim() == first.dim() && residual->size(channel) == s.out_channels &&
                (!s.batched || residual->size(0) == s.batch);
    for (int i = 0; same && i < s.spatial; ++i) same = residual->size(channel + 1 + i) == s.out_size[3 - s.spatial + i];
    TORCH_CHECK(same, kOp, "residual has shape ", residual->sizes(), ", expected the output's, ",
                at::IntArrayRef(s.output_sizes()), "; expand or slice it first");
  }
  return s;
}

bool is_channels_last(const at::Tensor& t, bool batched) {
  const at::IntArrayRef sizes = t.sizes(), strides = t.strides();
  const int channel = batched ? 1 : 0;
  if (strides[channel] == 0 || sizes[channel] == 0) return false;
  int64_t least = strides[channel] * sizes[channel];  // channels, then the spatial dimensions from the last
  for (int64_t d = t.dim() - 1; d > channel; --d) {
    if (sizes[d] == 0 || strides[d] < least) return false;
    least = strides[d] * sizes[d];
  }
  if (batched && (sizes[0] == 0 || strides[0] < least)) return false;
  return least != strides[channel];  // one pixel of one channel: both formats are alike, take the contiguous one
}

// Memory of 32 MB and more is mapped anew on every allocation (malloc's largest threshold), and touching it for the
// first time costs more than computing it: 17 against 6 ms for 38 MB with pages of 4 KB and 2 MB.
static void ask_for_huge_pages(const at::Tensor& t) {
#ifdef __linux__
  constexpr uintptr_t kMapped = 32 << 20, kPage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(t.data_ptr()), end = begin + t.nbytes();
  if (t.nbytes() < kMapped) return;
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: where it is refused nothing changes
#endif
}

at::Tensor empty_in_format_of(const at::Tensor& like, at::IntArrayRef sizes, bool batched) {
  const int channel = batched ? 1 : 0, rank = int(sizes.size());
  int64_t strides[5], next = 1;
  const auto place = [&](int d, int64_t size) { strides[d] = next, next *= size; };
  if (is_channels_last(like, batched)) {
    place(channel, sizes[channel]);
    for (int d = rank - 1; d > channel; --d) place(d, sizes[d]);
    if (batched) place(0, sizes[0]);
  } else {
    for (int d = rank - 1; d >= 0; --d) place(d, std::max<int64_t>(sizes[d], 1));
  }
  at::Tensor result = at::empty_strided(sizes, {strides, size_t(rank)}, like.options());
  if (result.is_cpu()) ask_for_huge_pages(result);
  return result;
}

}  // namespace pw
