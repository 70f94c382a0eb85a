#include "fingerprint.h"

#include <ATen/Parallel.h>

#include <cstring>
#include <vector>

namespace pw {
namespace {

constexpr int kLanes = 8;              // hashes that take turns, for one multiplication waits for the last
constexpr int64_t kChunk = 256 << 10;  // bytes, so that the number of threads does not matter

// A bijection: of two different words, or two different hashes, the results differ.
uint64_t mix(uint64_t word) {
  word *= 0x9e3779b97f4a7c15;
  return word ^ word >> 32;
}

uint64_t hash(const char* data, int64_t bytes) {
  uint64_t lanes[kLanes] = {1, 2, 3, 4, 5, 6, 7, 8}, words[kLanes];
  const auto take = [&] {
#pragma GCC unroll 8
    for (int i = 0; i < kLanes; ++i) lanes[i] = mix(lanes[i] ^ words[i]);
  };
  for (; bytes >= int64_t(sizeof(words)); data += sizeof(words), bytes -= sizeof(words)) {
    memcpy(words, data, sizeof(words));
    take();
  }
  if (bytes > 0) {
    memset(words, 0, sizeof(words));
    memcpy(words, data, bytes);
    take();
  }
  uint64_t all = 0;
  for (uint64_t lane : lanes) all = mix(all ^ lane);
  return all;
}

}  // namespace

uint64_t fingerprint(const at::Tensor& tensor) {
  const at::Tensor dense = tensor.is_non_overlapping_and_dense() ? tensor : tensor.contiguous();
  const char* data = static_cast<const char*>(dense.const_data_ptr());
  const int64_t bytes = int64_t(dense.nbytes()), chunks = (bytes + kChunk - 1) / kChunk;
  std::vector<uint64_t> hashes(chunks);
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) hashes[i] = hash(data + i * kChunk, std::min(kChunk, bytes - i * kChunk));
  });
  uint64_t all = uint64_t(bytes);
  for (int64_t stride : tensor.strides()) all = mix(all ^ uint64_t(stride));
  for (uint64_t chunk : hashes) all = mix(all ^ chunk);
  return all;
}

}  // namespace pw
