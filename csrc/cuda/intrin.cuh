// Everything the kernels need of CUDA beyond plain C++, each with a host twin that the emulator runs. No other file of
// kernel code says threadIdx, __syncthreads or asm.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "launch.h"

namespace pw {
struct NoSharedMemory {};
}  // namespace pw

#ifdef __CUDACC__
#include <cuda_runtime.h>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "pointwise_ext needs sm_80 or newer; remove older ones from TORCH_CUDA_ARCH_LIST"
#endif

#define PW_DEVICE __device__ __forceinline__
// Blocks of `threads`, of which a multiprocessor holds `blocks`: that bounds the registers of a thread.
#define PW_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define PW_PARAMETER const __grid_constant__

namespace pw {

PW_DEVICE int thread_index() { return int(threadIdx.x); }
PW_DEVICE int64_t block_index() { return blockIdx.x; }
PW_DEVICE int64_t grid_size() { return gridDim.x; }
PW_DEVICE void sync_threads() { __syncthreads(); }

// The block's shared memory, of which a kernel has one object.
template <class T>
PW_DEVICE T& shared_memory() {
  extern __shared__ __align__(16) char bytes[];
  return *reinterpret_cast<T*>(bytes);
}

// Starts to copy one element of 4, 8 or 16 bytes to shared memory, or a zero where the source lies outside.
template <class T>
PW_DEVICE void copy_async(T* shared, const T* global, bool inside) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "sizes that cp.async has");
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
               "l"(global), "n"(sizeof(T)), "r"(inside ? uint32_t(sizeof(T)) : 0u)
               : "memory");
}

// Closes a group of copies; a wait returns when all but the latest PENDING groups of this thread have arrived.
PW_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
PW_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Starts a kernel whose shared memory is one T. Null, or what went wrong.
template <class T, class... Parameters>
const char* launch_kernel(void (*kernel)(Parameters...), int64_t blocks, int threads, Stream stream,
                          const Parameters&... parameters) {
  constexpr size_t kShared = std::is_empty<T>::value ? 0 : sizeof(T);
  static_assert(kShared <= 48 << 10, "a kernel has to ask for more than 48 KiB of shared memory");
  kernel<<<unsigned(blocks), unsigned(threads), kShared, static_cast<cudaStream_t>(stream)>>>(parameters...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace pw

#else
#include "../emulate/block.h"

#define PW_DEVICE inline
#define PW_KERNEL(threads, blocks) void
#define PW_PARAMETER const

namespace pw {

PW_DEVICE int thread_index() { return emulate::Grid::current().thread(); }
PW_DEVICE int64_t block_index() { return emulate::Grid::current().block(); }
PW_DEVICE int64_t grid_size() { return emulate::Grid::current().blocks(); }
PW_DEVICE void sync_threads(int line = __builtin_LINE()) { emulate::Grid::current().barrier(line); }

template <class T>
PW_DEVICE T& shared_memory() {
  return *static_cast<T*>(emulate::Grid::current().shared(sizeof(T)));
}

template <class T>
PW_DEVICE void copy_async(T* shared, const T* global, bool inside) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "sizes that cp.async has");
  emulate::Grid::current().copies().add(shared, global, sizeof(T), inside);
}
PW_DEVICE void copy_async_commit() { emulate::Grid::current().copies().commit(); }
template <int PENDING>
PW_DEVICE void copy_async_wait() {
  emulate::Grid::current().copies().wait(PENDING);
}

template <class T, class... Parameters>
const char* launch_kernel(void (*kernel)(Parameters...), int64_t blocks, int threads, Stream stream,
                          const Parameters&... parameters) {
  const auto& schedule = *static_cast<const emulate::Schedule*>(stream);
  emulate::Grid::run(blocks, threads, sizeof(T), schedule, [&] { kernel(parameters...); });
  return nullptr;
}

}  // namespace pw
#endif
