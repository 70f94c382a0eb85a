// dz = dy activation'(saved), and its sum over pixels per channel, in vectors along the innermost dimension.
#pragma once
#include "epilogue.h"
#include "kernels.h"

namespace pw::PW_ISA {

template <class T>
struct GradRows {
  const ActivationGrad& p;
  const T *dy, *saved;
  T* dz;

  explicit GradRows(const ActivationGrad& problem)
      : p(problem), dy(at(problem.dy)), saved(at(problem.saved)), dz(at(problem.dz)) {}
  static T* at(const Matrix& m) { return static_cast<T*>(m.data); }

  // n lanes at pixel offsets `row` and channel `c`, `step` apart; returns dz.
  PW_INLINE Vec<acc_t<T>> lanes(int64_t in, int64_t kept, int64_t out, int64_t in_step, int64_t kept_step,
                                int64_t out_step, int n) const {
    Vec<acc_t<T>> v = gather(dy + in, in_step, n);
    if (!dz) return v;
    v = activation_grad(p.activation, v, gather(saved + kept, kept_step, n));
    scatter(dz + out, out_step, v, n);
    return v;
  }

  // Channels innermost: pixels [first, first + count) of all channels.
  void pixels(int64_t first, int64_t count, acc_t<T>* sums) const {
    constexpr int L = Vec<acc_t<T>>::size;
    std::fill(sums, sums + p.channels, acc_t<T>(0));
    for (int64_t i = first; i < first + count; ++i) {
      const int64_t in = offset(p.pixels, p.dy.row, i), kept = offset(p.pixels, p.saved.row, i),
                    out = offset(p.pixels, p.dz.row, i);
      const int64_t kept_step = p.saved.col.step[kRank - 1], out_step = p.dz.col.step[kRank - 1];
      for (int64_t c = 0; c < p.channels; c += L) {
        const int n = int(std::min<int64_t>(L, p.channels - c));
        const auto v = lanes(in + c, kept + c * kept_step, out + c * out_step, 1, kept_step, out_step, n);
        store(sums + c, load(sums + c, n) + v, n);
      }
    }
  }

  // Pixels innermost: one run of pixels, channel by channel.
  void run(int64_t row, acc_t<T>* sums) const {
    constexpr int L = Vec<acc_t<T>>::size, d = kRank - 1;
    const int64_t length = p.pixels.size[d], first = row * length;
    const int64_t in0 = offset(p.pixels, p.dy.row, first), kept0 = offset(p.pixels, p.saved.row, first),
                  out0 = offset(p.pixels, p.dz.row, first);
    const int64_t in_step = p.dy.row.step[d], kept_step = p.saved.row.step[d], out_step = p.dz.row.step[d];
    for (int64_t c = 0; c < p.channels; ++c) {
      const int64_t in = in0 + c * p.dy.col.step[d], kept = kept0 + c * p.saved.col.step[d],
                    out = out0 + c * p.dz.col.step[d];
      Vec<acc_t<T>> sum(0);
      for (int64_t i = 0; i < length; i += L) {
        const int n = int(std::min<int64_t>(L, length - i));
        Vec<acc_t<T>> v =
            lanes(in + i * in_step, kept + i * kept_step, out + i * out_step, in_step, kept_step, out_step, n);
        if (n < L) {  // activation'(0) of the lanes past the end must not count
          acc_t<T> counted[L] = {};
          store(counted, v, n);
          v = load(counted, L);
        }
        sum = sum + v;
      }
      sums[c] = sum_of(sum);
    }
  }
};

template <class T>
void activation_grad_rows(const ActivationGrad& p, void* partial, int64_t begin, int64_t end) {
  const GradRows<T> rows(p);
  for (int64_t row = begin; row < end; ++row) {
    acc_t<T>* sums = static_cast<acc_t<T>*>(partial) + row * p.channels;
    if (cpu::channels_inner(p)) {
      const int64_t first = row * cpu::kGradPixels;
      rows.pixels(first, std::min(cpu::kGradPixels, p.pixels.count() - first), sums);
    } else {
      rows.run(row, sums);
    }
  }
}

}  // namespace pw::PW_ISA
