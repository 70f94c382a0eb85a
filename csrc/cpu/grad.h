// dz = dy activation'(saved), and its sum over pixels per channel, in vectors along the innermost dimension.
#pragma once
#include "epilogue.h"
#include "kernels.h"

namespace pw::PW_ISA {

// Without an activation: no dz, and dy itself is summed up.
struct NoDerivative {
  static constexpr bool kWrites = false;
};
template <class F>
struct Derivative {
  static constexpr bool kWrites = true;
  F of;  // (dy, saved) in vectors
};

template <class T, class D, class Derivative>
struct GradRows {
  using V = Vec<acc_t<T>>;
  static constexpr int L = V::size, d = kRank - 1;
  static constexpr bool kWrites = Derivative::kWrites;
  static constexpr int kLine = 64 / sizeof(T), kAhead = 4096 / sizeof(T);  // elements
  const ActivationGrad& p;
  Derivative derivative;

  // A place in dy, saved and dz, and the step from one element to the next; UNIT: all steps are 1.
  template <bool UNIT>
  struct Place {
    const T *dy, *saved;
    T* dz;
    int64_t step[3];

    PW_INLINE Place moved(int64_t elements) const {
      if (UNIT) return {dy + elements, saved + elements, dz + elements, {1, 1, 1}};
      return {
          dy + elements * step[0], saved + elements * step[1], dz + elements * step[2], {step[0], step[1], step[2]}};
    }
    // The lines that many elements further on, of memory: no prefetcher follows so many short rows.
    PW_INLINE void fetch(int64_t in, int64_t kept) const {
      __builtin_prefetch(dy + in);
      if (kWrites) __builtin_prefetch(saved + kept);
    }
    // n lanes of dz, written and returned.
    PW_INLINE V lanes(const Derivative& derivative, int n) const {
      const V v = UNIT ? load(dy, n) : gather(dy, step[0], n);
      if constexpr (kWrites) {
        const V grad = derivative.of(v, UNIT ? load(saved, n) : gather(saved, step[1], n));
        if (UNIT)
          round_store<D>(dz, grad, n);
        else
          scatter(dz, step[2], grad, n);
        return grad;
      }
      return v;
    }
  };

  static T* data(const Matrix& m) { return static_cast<T*>(m.data); }
  template <bool UNIT>
  Place<UNIT> place(int64_t in, int64_t kept, int64_t out) const {
    const bool inner = cpu::channels_inner(p);
    const auto step = [inner](const Matrix& m) { return (inner ? m.col : m.row).step[d]; };
    if constexpr (!kWrites) return {data(p.dy) + in, nullptr, nullptr, {step(p.dy), 0, 0}};
    return {data(p.dy) + in, data(p.saved) + kept, data(p.dz) + out, {step(p.dy), step(p.saved), step(p.dz)}};
  }

  // Channels innermost: pixels [first, first + count) of all channels.
  template <bool UNIT>
  void pixels(int64_t first, int count, acc_t<T>* sums) const {
    constexpr int64_t kMost = cpu::kGradPixels + L;  // shares are rounded to vectors
    int64_t in[kMost], kept[kMost] = {}, out[kMost] = {};
    fill_offsets(p.pixels, p.dy.row, first, count, 1, in);
    if (kWrites) fill_offsets(p.pixels, p.saved.row, first, count, 1, kept);
    if (kWrites) fill_offsets(p.pixels, p.dz.row, first, count, 1, out);
    const int64_t channels = p.channels;
    std::fill(sums, sums + channels, acc_t<T>(0));
    const Derivative derivative = this->derivative;
    const auto some = [&](int i, auto together) {  // several pixels, so that the sums are touched less often
      Place<UNIT> of[together];
      for (int j = 0; j < together; ++j) of[j] = place<UNIT>(in[i + j], kept[i + j], out[i + j]);
      const auto add = [&](int64_t c, int n) __attribute__((always_inline)) {
        if (UNIT && c % kLine == 0)
#pragma GCC unroll 4
          for (int j = 0; j < together; ++j) of[j].moved(c).fetch(kAhead, kAhead);
        V sum = load(sums + c, n);
#pragma GCC unroll 4
        for (int j = 0; j < together; ++j) sum = sum + of[j].moved(c).lanes(derivative, n);
        store(sums + c, sum, n);
      };
      int64_t c = 0;
      for (; c + L <= channels; c += L) add(c, L);
      if (c < channels) add(c, int(channels - c));
    };
    int i = 0;
    for (; i + 4 <= count; i += 4) some(i, std::integral_constant<int, 4>());
    for (; i < count; ++i) some(i, std::integral_constant<int, 1>());
  }

  // Pixels innermost: `length` pixels, channel by channel. Lanes past the end hold dy = 0 and add nothing.
  template <bool UNIT>
  void run(int64_t first, int64_t length, acc_t<T>* sums) const {
    constexpr int kTogether = 4;  // sums, so that no addition waits for the last
    const int64_t in = offset(p.pixels, p.dy.row, first), kept = offset(p.pixels, p.saved.row, first),
                  out = offset(p.pixels, p.dz.row, first);
    const Derivative derivative = this->derivative;
    for (int64_t c = 0; c < p.channels; ++c) {
      const Place<UNIT> of =
          place<UNIT>(in + c * p.dy.col.step[d], kept + c * p.saved.col.step[d], out + c * p.dz.col.step[d]);
      V sum[kTogether] = {V(0), V(0), V(0), V(0)};
      int64_t i = 0;
      if (UNIT)
        for (int64_t j = 0; j < length; j += kLine) of.moved(j).fetch(2 * p.dy.col.step[d], 2 * p.saved.col.step[d]);
      for (; i + kTogether * L <= length; i += kTogether * L)
#pragma GCC unroll 4
        for (int j = 0; j < kTogether; ++j) sum[j] = sum[j] + of.moved(i + j * L).lanes(derivative, L);
      for (; i + L <= length; i += L) sum[0] = sum[0] + of.moved(i).lanes(derivative, L);
      if (i < length) sum[1] = sum[1] + of.moved(i).lanes(derivative, int(length - i));
      sums[c] = sum_of((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
  }

  template <bool UNIT>
  void row(int64_t row, acc_t<T>* sums) const {
    const int64_t per_run = cpu::grad_rows_per_run(p), run_length = cpu::grad_run(p);
    const cpu::Range part = cpu::part_in_steps(run_length, per_run, row % per_run, L);
    const int64_t first = row / per_run * run_length + part.begin;
    if (cpu::channels_inner(p))
      pixels<UNIT>(first, int(part.size()), sums);
    else
      run<UNIT>(first, part.size(), sums);
  }

  void rows(acc_t<T>* partial, int64_t begin, int64_t end) const {
    const Place<false> of = place<false>(0, 0, 0);
    const bool unit = of.step[0] == 1 && (!kWrites || (of.step[1] == 1 && of.step[2] == 1));
    for (int64_t r = begin; r < end; ++r)
      unit ? row<true>(r, partial + r * p.channels) : row<false>(r, partial + r * p.channels);
  }
};

template <class T, class D>
void activation_grad_rows(const ActivationGrad& p, void* partial, int64_t begin, int64_t end) {
  using V = Vec<acc_t<T>>;
  const auto rows = [&](auto derivative) {
    GradRows<T, D, decltype(derivative)>{p, derivative}.rows(static_cast<acc_t<T>*>(partial), begin, end);
  };
  if (!p.dz.data) return rows(NoDerivative());
  const auto with = [&](auto f) { rows(Derivative<decltype(f)>{f}); };
  if (p.activation.kind == Act::relu)  // the common one, with its formula in the loop
    with([](V dy, V saved) { return pw::activation_grad(Activation{Act::relu}, dy, saved); });
  else
    with([activation = p.activation](V dy, V saved) { return pw::activation_grad(activation, dy, saved); });
}

}  // namespace pw::PW_ISA
