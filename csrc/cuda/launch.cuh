// The launches of one storage type, for launch_<dtype>.cu to instantiate.
#pragma once
#include "activation_grad.cuh"
#include "gemm_fma.cuh"
#include "launch.h"
#include "reduce.cuh"

namespace pw {

// C = epilogue(sum of partials) for `groups` products
template <class T>
const char* launch_reduce(const Gemm& g, const GroupSteps& steps, const void* partials, int64_t groups, int64_t splits,
                          Stream stream, const Tuning& tuning) {
  const int64_t blocks = divide_up(groups * g.m.count() * g.n.count(), kReduceThreads);
  return launch_kernel<NoSharedMemory>(reduce<T>, std::min(blocks, tuning.max_blocks), kReduceThreads, stream, g, steps,
                                       partials, groups, splits);
}

template <class T>
const char* launch_gemm_as(const Gemm* gemms, int64_t count, void* workspace, Stream stream, const Tuning& tuning) {
  const Gemm& g = *gemms;
  GemmLaunch launch{plan_gemm(g, count, tuning), {}, workspace};
  if (!equally_spaced(gemms, count, launch.groups)) return "the products of one launch do not lie at equal distances";
  const GemmPlan& p = launch.plan;
  if (p.work() == 0) return nullptr;
  const auto run = [&](auto tile) {
    constexpr int kTile = decltype(tile)::value;
    return launch_kernel<typename GemmFma<T, kTile>::Shared>(gemm_fma<T, kTile>, std::min(p.work(), tuning.max_blocks),
                                                             kGemmThreads, stream, g, launch);
  };
  const char* error = nullptr;
  if constexpr (sizeof(T) < sizeof(double))  // whose sums would not fit into the registers
    error = p.tile == kLargeTile ? run(std::integral_constant<int, kLargeTile>())
                                 : run(std::integral_constant<int, kSmallTile>());
  else
    error = run(std::integral_constant<int, kSmallTile>());
  if (error || p.splits == 1) return error;
  return launch_reduce<T>(g, launch.groups, workspace, count, p.splits, stream, tuning);
}

template <class T>
const char* launch_activation_grad_as(const ActivationGrad& a, void* workspace, Stream stream, const Tuning& tuning) {
  const ActivationGradPlan p = plan_activation_grad(a, tuning);
  if (p.work() == 0) return nullptr;
  void* partials = a.db ? workspace : nullptr;
  const char* error = launch_kernel<ActivationGradShared<T>>(
      activation_backward<T>, std::min(p.work(), tuning.max_blocks), kGradThreads, stream, a, p, partials);
  if (error || !a.db) return error;
  Gemm db;  // a product of which only the sum of partial results is left: one column
  db.m.size[kRank - 1] = a.channels;
  db.c.data = a.db;
  db.c.row.step[kRank - 1] = 1;
  return launch_reduce<T>(db, {}, partials, 1, p.chunks, stream, tuning);
}

}  // namespace pw
