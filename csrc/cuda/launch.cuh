// The launches of one storage type, for launch_<dtype>.cu to instantiate.
#pragma once
#include "activation_grad.cuh"
#include "gemm_fma.cuh"
#include "gemm_lean.cuh"
#include "gemm_mma.cuh"
#include "launch.h"
#include "reduce.cuh"

namespace pw {

// C = epilogue(sum of partials, rows of `columns`) for `groups` products
template <class T>
const char* launch_reduce(const Gemm& g, const GroupSteps& steps, const void* partials, int64_t columns, int64_t groups,
                          int64_t splits, Stream stream, const Tuning& tuning) {
  const int64_t blocks = divide_up(groups * g.m.count() * reduce_threads(g, columns), reduce_width(splits));
  return launch_kernel(reduce<T>, kReduceThreads * sizeof(acc_t<T>), std::min(blocks, tuning.max_blocks),
                       kReduceThreads, stream, g, steps, partials, columns, groups, splits);
}

template <class T>
const char* launch_fma(const Gemm& g, const GemmLaunch& launch, Stream stream, const Tuning& tuning) {
  if (g.mask.words || g.gate.present()) return "gemm_fma has no masks and gates";
  const auto run = [&](auto tile) {
    constexpr int kTile = decltype(tile)::value;
    return launch_kernel(gemm_fma<T, kTile>, sizeof(typename GemmFma<T, kTile>::Shared),
                         std::min(launch.plan.work(), tuning.max_blocks), kGemmThreads, stream, g, launch);
  };
  if constexpr (sizeof(T) < sizeof(double))
    if (launch.plan.tile == 1) return run(std::integral_constant<int, kFmaTiles[1].m>());
  return run(std::integral_constant<int, kFmaTiles[0].m>());
}

template <class T, bool STRICT>
const char* launch_mma(const Gemm& g, const GemmLaunch& launch, Stream stream, const Tuning& tuning) {
  const auto run = [&](auto traits) {
    using Traits = decltype(traits);
    const int64_t blocks = std::min(launch.plan.blocks(), tuning.max_blocks);
    const auto lean = [&](auto wide) {
      using Lean = LeanTraits<Traits, decltype(wide)::value>;
      LeanLaunch l = lean_launch(g, launch.plan, launch.groups, launch.workspace);
      if (Lean::kSimple && !l.simple && !l.partials) return "the plan has a tile that does not end as it should";
      const size_t shared_bytes = LeanShared<Lean>::place(l);
      return launch_kernel(gemm_lean<Lean>, shared_bytes, blocks, Traits::kThreads, stream, l);
    };
    if (launch.plan.wide) return lean(std::true_type());
    if constexpr (Traits::kBlocksM == 2)
      if (launch.plan.lean) return lean(std::false_type());
    if (g.gate.present() || g.row_sums) return "gemm_mma has no gates and adds no rows up";
    if constexpr (Traits::kThreads == 128 && Traits::kWarpsM == 2)
      return launch_kernel(gemm_mma<Traits>, sizeof(typename GemmMma<Traits>::Shared), blocks, Traits::kThreads, stream,
                           g, launch);
    return "the plan has a tile that its kernel does not compute";
  };
  const auto with_tile = [&](auto a_along_k, auto b_along_k) {
    constexpr bool kA = decltype(a_along_k)::value, kB = decltype(b_along_k)::value;
    switch (launch.plan.tile) {  // of kMmaTiles
      case 0:
        return run(MmaTraits<T, STRICT, kA, kB, 2, 2, 32>());
      case 1:
        return run(MmaTraits<T, STRICT, kA, kB, 1, 4, 32>());
      case 2:
        return run(MmaTraits<T, STRICT, kA, kB, 4, 1, 32>());
    }
    if constexpr (!STRICT) {
      if (launch.plan.tile == 3) return run(MmaTraits<T, STRICT, kA, kB, 2, 4, 32>());
      if (launch.plan.tile == 4) return run(MmaTraits<T, STRICT, kA, kB, 4, 2, 32>());
      if (launch.plan.tile == 5) return run(MmaTraits<T, STRICT, kA, kB, 2, 4, 64>());
    }
    return "the plan has a tile that no kernel computes";
  };
  const Access& access = launch.plan.access;
  if (access.b.along_k) return with_tile(std::true_type(), std::true_type());
  if (access.a.along_k) return with_tile(std::true_type(), std::false_type());
  return with_tile(std::false_type(), std::false_type());
}

template <class T>
const char* launch_gemm_as(const Gemm* gemms, const GemmPlan& plan, void* workspace, Stream stream,
                           const Tuning& tuning) {
  const Gemm& g = *gemms;
  GemmLaunch launch{limited(plan, g, tuning.max_blocks), {}, workspace};
  if (!equally_spaced(gemms, plan.groups, launch.groups))
    return "the products of one launch do not lie at equal distances";
  if (plan.work() == 0) return nullptr;
  const char* error = nullptr;
  if constexpr (sizeof(T) == 8)
    error = launch_fma<T>(g, launch, stream, tuning);
  else if constexpr (sizeof(T) == 2)
    error = launch_mma<T, false>(g, launch, stream, tuning);
  else if (plan.kernel == Kernel::fma)
    error = launch_fma<T>(g, launch, stream, tuning);
  else
    error = g.tf32 ? launch_mma<T, false>(g, launch, stream, tuning) : launch_mma<T, true>(g, launch, stream, tuning);
  if (error || plan.splits == 1) return error;
  return launch_reduce<T>(g, launch.groups, workspace, partial_columns(g), plan.groups, plan.splits, stream, tuning);
}

template <class T>
const char* launch_activation_grad_as(const ActivationGrad& a, void* workspace, Stream stream, const Tuning& tuning) {
  const ActivationGradPlan p = plan_activation_grad(a, tuning);
  if (p.work() == 0) return nullptr;
  void* partials = a.db ? workspace : nullptr;
  const char* error = launch_kernel(activation_backward<T>, sizeof(ActivationGradShared<T>),
                                    std::min(p.work(), tuning.max_blocks), kGradThreads, stream, a, p, partials);
  if (error || !a.db) return error;
  Gemm db;  // a product of which only the sum of partial results is left: one column
  db.m.size[kRank - 1] = a.channels;
  db.c.data = a.db;
  db.c.row.step[kRank - 1] = 1;
  return launch_reduce<T>(db, {}, partials, 1, 1, p.chunks, stream, tuning);
}

}  // namespace pw
