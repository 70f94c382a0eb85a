// dz = dy activation'(saved), and its sum over pixels per channel, in vectors along the innermost dimension.
#pragma once
#include "epilogue.h"
#include "kernels.h"

namespace pw::PW_ISA {

// `derivative(dy, saved)` in vectors; without dz there is none, and dy itself is summed up.
template <class T, class D, class Derivative>
struct GradRows {
  using V = Vec<acc_t<T>>;
  static constexpr int L = V::size;
  const ActivationGrad& p;
  Derivative derivative;
  const T *dy = at(p.dy), *saved = at(p.saved);
  T* dz = at(p.dz);

  static T* at(const Matrix& m) { return static_cast<T*>(m.data); }

  // n lanes, `step` elements apart each; UNIT: all steps are 1.
  template <bool UNIT>
  PW_INLINE V lanes(int64_t in, int64_t kept, int64_t out, const int64_t (&step)[3], int n) const {
    const V v = UNIT ? load(dy + in, n) : gather(dy + in, step[0], n);
    if (!dz) return v;
    const V grad = derivative(v, UNIT ? load(saved + kept, n) : gather(saved + kept, step[1], n));
    if (UNIT)
      round_store<D>(dz + out, grad, n);
    else
      scatter(dz + out, step[2], grad, n);
    return grad;
  }

  // Channels innermost: pixels [first, first + count) of all channels.
  template <bool UNIT>
  void pixels(int64_t first, int count, const int64_t (&step)[3], acc_t<T>* sums) const {
    constexpr int64_t kMost = cpu::kGradPixels + L;  // shares are rounded to vectors
    int64_t in[kMost], kept[kMost] = {}, out[kMost] = {};
    fill_offsets(p.pixels, p.dy.row, first, count, 1, in);
    if (dz) fill_offsets(p.pixels, p.saved.row, first, count, 1, kept);
    if (dz) fill_offsets(p.pixels, p.dz.row, first, count, 1, out);
    std::fill(sums, sums + p.channels, acc_t<T>(0));
    const auto some = [&](int i, auto together) {  // several pixels, so that the sums are touched less often
      for (int64_t c = 0; c < p.channels; c += L) {
        const int n = int(std::min<int64_t>(L, p.channels - c));
        V sum = load(sums + c, n);
        for (int j = i; j < i + together; ++j)
          sum = sum + lanes<UNIT>(in[j] + c * step[0], kept[j] + c * step[1], out[j] + c * step[2], step, n);
        store(sums + c, sum, n);
      }
    };
    int i = 0;
    for (; i + 4 <= count; i += 4) some(i, std::integral_constant<int, 4>());
    for (; i < count; ++i) some(i, std::integral_constant<int, 1>());
  }

  // Pixels innermost: `length` pixels, channel by channel. Lanes past the end hold dy = 0 and add nothing.
  template <bool UNIT>
  void run(int64_t first, int64_t length, const int64_t (&step)[3], acc_t<T>* sums) const {
    constexpr int d = kRank - 1, kTogether = 4;  // sums, so that no addition waits for the last
    const int64_t in0 = offset(p.pixels, p.dy.row, first), kept0 = offset(p.pixels, p.saved.row, first),
                  out0 = offset(p.pixels, p.dz.row, first);
    for (int64_t c = 0; c < p.channels; ++c) {
      const int64_t in = in0 + c * p.dy.col.step[d], kept = kept0 + c * p.saved.col.step[d],
                    out = out0 + c * p.dz.col.step[d];
      V sum[kTogether] = {V(0), V(0), V(0), V(0)};
      const auto add = [&](V& to, int64_t i, int n) {
        to = to + lanes<UNIT>(in + i * step[0], kept + i * step[1], out + i * step[2], step, n);
      };
      int64_t i = 0;
      for (; i + kTogether * L <= length; i += kTogether * L)
#pragma GCC unroll 4
        for (int j = 0; j < kTogether; ++j) add(sum[j], i + j * L, L);
      for (; i < length; i += L) add(sum[0], i, int(std::min<int64_t>(L, length - i)));
      sums[c] = sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
  }

  void row(int64_t row, acc_t<T>* sums) const {
    constexpr int d = kRank - 1;
    const bool inner = cpu::channels_inner(p);
    const auto step_of = [&](const Matrix& m) { return inner ? m.col.step[d] : m.row.step[d]; };
    const int64_t step[3] = {step_of(p.dy), step_of(p.saved), step_of(p.dz)};
    const bool unit = step[0] == 1 && (!dz || (step[1] == 1 && step[2] == 1));
    const int64_t per_run = cpu::grad_rows_per_run(p), run_length = cpu::grad_run(p);
    const cpu::Range part = cpu::part_in_steps(run_length, per_run, row % per_run, L);
    const int64_t first = row / per_run * run_length + part.begin;
    if (inner)
      unit ? pixels<true>(first, int(part.size()), step, sums) : pixels<false>(first, int(part.size()), step, sums);
    else
      unit ? run<true>(first, part.size(), step, sums) : run<false>(first, part.size(), step, sums);
  }
};

template <class T, class D>
void activation_grad_rows(const ActivationGrad& p, void* partial, int64_t begin, int64_t end) {
  using V = Vec<acc_t<T>>;
  const auto rows = [&](auto derivative) {
    const GradRows<T, D, decltype(derivative)> rows{p, derivative};
    for (int64_t row = begin; row < end; ++row) rows.row(row, static_cast<acc_t<T>*>(partial) + row * p.channels);
  };
  if (p.activation.kind == Act::relu)  // the common one, with its formula in the loop
    rows([](V dy, V saved) { return pw::activation_grad(Activation{Act::relu}, dy, saved); });
  else
    rows([&p](V dy, V saved) { return pw::activation_grad(p.activation, dy, saved); });
}

}  // namespace pw::PW_ISA
