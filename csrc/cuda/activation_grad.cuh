// dz = dy activation'(saved) and db[c] = sum of dz over batch and pixels, in one pass over dy and saved, or its mask.
//
// A block walks over a chunk of the pixels of kTileChannels channels, tile by tile, and keeps one sum for each place in
// the tile, which one thread adds to. At the end the block adds them in order into one partial sum per channel; the
// chunks' partial sums are added by reduce().
#pragma once
#include "../activation.h"
#include "intrin.cuh"
#include "offsets.cuh"
#include "plan_backward.h"

namespace pw {

constexpr int kGradThreads = 256;

template <class T>
struct ActivationGradShared {
  int64_t dy_row[kTilePixels], saved_row[kTilePixels], dz_row[kTilePixels];
  acc_t<T> sum[kTilePixels][kTileChannels + 1];
};

PW_DEVICE bool bit_of(const Mask& mask, int64_t pixel, int64_t channel) {
  const int64_t row = mask.along_pixels ? channel : pixel, bit = mask.along_pixels ? pixel : channel;
  return mask.words[row * mask.pitch + bit / 32] >> bit % 32 & 1;
}

// partials: (chunks, channels), contiguous; null where no db is asked for
template <class T>
PW_KERNEL(kGradThreads, 4)
activation_backward(PW_PARAMETER ActivationGrad a, PW_PARAMETER ActivationGradPlan plan, void* partials) {
  using Acc = acc_t<T>;
  constexpr int kPlaces = kTilePixels * kTileChannels / kGradThreads;
  auto& shared = shared_memory<ActivationGradShared<T>>();
  const T *dy = static_cast<const T*>(a.dy.data), *saved = static_cast<const T*>(a.saved.data);
  T* dz = static_cast<T*>(a.dz.data);
  const int64_t pixels = a.pixels.count();
  const bool along_channels = contiguous(a.dy.col);

  for (int64_t work = block_index(); work < plan.work(); work += grid_size()) {
    const int64_t chunk = work / plan.channel_tiles, c0 = work % plan.channel_tiles * kTileChannels;
    const int64_t begin = chunk * plan.tiles_per_chunk * kTilePixels;
    const int64_t end = begin + plan.tiles_per_chunk * kTilePixels;
#pragma unroll 1
    for (int i = 0; i < kPlaces; ++i) {
      int p, c;
      place<kTilePixels, kTileChannels>(along_channels, thread_index() + i * kGradThreads, p, c);
      shared.sum[p][c] = 0;
    }
    for (int64_t p0 = begin; p0 < end && p0 < pixels; p0 += kTilePixels) {
      fill_offsets<kTilePixels, kGradThreads>(shared.dy_row, a.pixels, a.dy.row, p0);
      if (saved) fill_offsets<kTilePixels, kGradThreads>(shared.saved_row, a.pixels, a.saved.row, p0);
      if (dz) fill_offsets<kTilePixels, kGradThreads>(shared.dz_row, a.pixels, a.dz.row, p0);
      sync_threads();
#pragma unroll 2
      for (int i = 0; i < kPlaces; ++i) {
        int p, c;
        place<kTilePixels, kTileChannels>(along_channels, thread_index() + i * kGradThreads, p, c);
        if (p0 + p >= pixels || c0 + c >= a.channels) continue;
        const auto channel = [&](const Matrix& matrix) { return (c0 + c) * matrix.col.step[kRank - 1]; };
        Acc v = widen(dy[shared.dy_row[p] + channel(a.dy)]);
        if (dz)
          v = activation_grad(
              a.activation, v,
              saved ? Acc(widen(saved[shared.saved_row[p] + channel(a.saved)])) : Acc(bit_of(a.mask, p0 + p, c0 + c)));
        if (dz) dz[shared.dz_row[p] + channel(a.dz)] = narrow<T>(v);
        shared.sum[p][c] += v;
      }
      sync_threads();  // the tables have been read
    }
    if (!partials) continue;
    if (thread_index() < kTileChannels && c0 + thread_index() < a.channels) {
      Acc total = 0;
      for (int p = 0; p < kTilePixels; ++p) total += shared.sum[p][thread_index()];
      static_cast<Acc*>(partials)[chunk * a.channels + c0 + thread_index()] = total;
    }
    sync_threads();  // the sums have been read
  }
}

}  // namespace pw
