// The table of functions of one instruction set, for a unit that has defined PW_ISA and PW_BYTES.
#pragma once
#ifdef PW_AMX
#include "amx.h"
#endif
#include "backward.h"

namespace pw::PW_ISA {

// 16-bit types multiply as fp32. Where no instruction narrows a vector, finishing in registers gains nothing and takes
// a quarter of the compile time.
template <class T>
using Widened = std::conditional_t<(kBytes >= 32), Dot<float, T>, Dot<float>>;

// Calls f with the storage type and multiplication of a dtype. `dot` asks for products of bf16 pairs.
template <bool DOT, class F>
void dispatch(DType dtype, F&& f) {
#ifdef PW_AMX
  return f(bf16{}, DotTiles{});  // kernels() gives other types to AVX-512's sets
#else
  switch (dtype) {
    case DType::f32:
      return f(float{}, Dot<float>{});
    case DType::f64:
      return f(double{}, Dot<double>{});
    case DType::f16:
      return f(f16{}, Widened<f16>{});
    case DType::bf16:
#ifdef PW_BF16_DOT
      if constexpr (DOT) return f(bf16{}, DotBf16{});
#endif
      return f(bf16{}, Widened<bf16>{});
  }
#endif
}

template <bool DOT>
cpu::Tiling tiling(DType dtype) {
  cpu::Tiling result;
  dispatch<DOT>(dtype, [&](auto t, auto d) {
    using D = decltype(d);
    constexpr bool stored = std::is_same_v<decltype(t), typename D::Elem> || (D::kPack > 1 && D::kChunk == 1);
    constexpr double upright = D::kChunk > 1              ? cpu::kUprightCostTiles
                               : sizeof(decltype(t)) == 2 ? cpu::kUprightCost16
                               : sizeof(decltype(t)) == 4 ? cpu::kUprightCost32
                                                          : cpu::kUprightCost32 / 2;
    result = {Vec<typename D::Acc>::size,
              kVectors,
              Microkernel<D>::kMostRowsOf,
              D::kPack,
              D::kPack * D::kChunk,
              upright,
              kBytes < 64,
              stored};
  });
  return result;
}

template <bool DOT>
void run(DType dtype, const cpu::Job& job, int64_t begin, int64_t end) {
  dispatch<DOT>(dtype, [&](auto t, auto d) { Runner<decltype(t), decltype(d)>(job).run(begin, end); });
}

template <bool DOT>
void merge(DType dtype, const cpu::Job& job, int64_t begin, int64_t end) {
  dispatch<DOT>(dtype, [&](auto t, auto d) { Runner<decltype(t), decltype(d)>(job).merge(begin, end); });
}

template <bool DOT>
void activation_grad(const ActivationGrad& p, void* partial, int64_t begin, int64_t end) {
  dispatch<DOT>(p.dtype,
                [&](auto t, auto d) { activation_grad_rows<decltype(t), decltype(d)>(p, partial, begin, end); });
}

template <bool DOT>
void chunked(DType dtype, const cpu::Chunked& job, int64_t begin, int64_t end) {
  dispatch<DOT>(dtype, [&](auto t, auto d) { ChunkRunner<decltype(t), decltype(d)>(job).run(begin, end); });
}

template <bool DOT>
constexpr cpu::Kernels table(const char* name, bool (*supported)()) {
  return {name, supported, tiling<DOT>, run<DOT>, merge<DOT>, activation_grad<DOT>, chunked<DOT>};
}

}  // namespace pw::PW_ISA
