// Everything the kernels need of CUDA beyond plain C++, each with a host twin that the emulator runs. No other file of
// kernel code says threadIdx, __syncthreads or asm.
#pragma once
#include <cstddef>
#include <cstdint>
#include <set>
#include <type_traits>
#include <utility>

#include "launch.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "pointwise_ext needs sm_80 or newer; remove older ones from TORCH_CUDA_ARCH_LIST"
#endif

#define PW_DEVICE __device__ __forceinline__
// Blocks of `threads`, of which a multiprocessor holds `blocks`: that bounds the registers of a thread.
#define PW_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define PW_PARAMETER const __grid_constant__
// A function that is called: its code is too long to be copied to every place.
#define PW_CALLED static __device__ __noinline__

namespace pw {

PW_DEVICE int thread_index() { return int(threadIdx.x); }
PW_DEVICE int64_t block_index() { return blockIdx.x; }
PW_DEVICE int64_t grid_size() { return gridDim.x; }
PW_DEVICE void sync_threads() { __syncthreads(); }
PW_DEVICE void sync_warp() { __syncwarp(); }  // its lanes see what the others have written

// The block's shared memory, of which a kernel has one object.
template <class T>
PW_DEVICE T& shared_memory() {
  extern __shared__ __align__(16) char bytes[];
  return *reinterpret_cast<T*>(bytes);
}

// A value that stays in a register: the compiler would work it out anew wherever it is used.
PW_DEVICE uint32_t pinned(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// What `value` is in lane (lane ^ other); all lanes of the warp take part.
PW_DEVICE uint32_t shuffle_xor(uint32_t value, int other) { return __shfl_xor_sync(0xffffffff, value, other); }

// Two floats as 16-bit ones, rounded as narrow() does, the first one in the lower half.
template <class T>
PW_DEVICE uint32_t narrow_pair(float low, float high) {
  uint32_t pair;
  if constexpr (std::is_same<T, bf16>::value)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Starts to copy the first `bytes` of BYTES to shared memory, with zeros after them. 16 bytes at a time they pass by
// the first-level cache.
template <int BYTES>
PW_DEVICE void copy_async(void* shared, const void* global, int bytes) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "sizes that cp.async has");
  const auto to = uint32_t(__cvta_generic_to_shared(shared));
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(BYTES), "r"(bytes)
                 : "memory");
}

// Starts to read into the second-level cache.
PW_DEVICE void prefetch_global(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

// Closes a group of copies; a wait returns when all but the latest PENDING groups of this thread have arrived.
PW_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
PW_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8x8 matrices of 16-bit elements. Lane i says where row i % 8 of matrix i / 8 lies, at a multiple of 16 bytes,
// and receives of each matrix the elements (i / 4, 2 (i % 4)) and the one right of it, or of its transpose.
template <bool TRANSPOSED>
PW_DEVICE void load_matrices(uint32_t (&to)[4], const void* row) {
  const auto from = uint32_t(__cvta_generic_to_shared(row));
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

// The other way round: lane i hands over of matrix m the elements that load_matrices gives it, and row r of it begins
// at address(m, r).
template <class Address>
PW_DEVICE void store_matrices(Address address, const uint32_t (&from)[4]) {
  const int lane = thread_index() % 32;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const auto to = uint32_t(__cvta_generic_to_shared(address(lane / 8, lane % 8)));
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(from[0]), "r"(from[1]),
               "r"(from[2]), "r"(from[3])
               : "memory");
#else
#pragma unroll
  for (int m = 0; m < 4; ++m) reinterpret_cast<uint32_t*>(address(m, lane / 4))[lane % 4] = from[m];
#endif
}

// Of two pairs of 16-bit floats the larger ones; NaN where either is.
template <class T>
PW_DEVICE uint32_t max_pair(uint32_t a, uint32_t b) {
  if constexpr (std::is_same<T, bf16>::value)
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(a) : "r"(a), "r"(b));
  else
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(a) : "r"(a), "r"(b));
  return a;
}

// D (16x8) += A (16x16) B (16x8), 16-bit floats. Lane i, g = i / 4, t = i % 4, holds of A the pairs (g, 2t), (g + 8,
// 2t), (g, 2t + 8), (g + 8, 2t + 8) along k, of B the pairs (2t, g), (2t + 8, g) along k, of D (g, 2t), (g, 2t + 1), (g
// + 8, 2t), (g + 8, 2t + 1).
template <class T>
PW_DEVICE void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same<T, bf16>::value)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// D (16x8) += A (16x8) B (8x8), TF32: the upper 19 bits of floats. Lane i holds of A (g, t), (g + 8, t), (g, t + 4),
// (g + 8, t + 4), of B (t, g), (t + 4, g), of D what multiply_16x8x16 does.
PW_DEVICE void multiply_16x8x8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The nearest TF32, ties away from zero.
PW_DEVICE uint32_t round_tf32(float v) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
}

// More than 48 KiB have to be asked for, once for each kernel and device: all that a block may have, for what one
// thread asks for holds for all others too.
inline cudaError_t ask_for_shared_memory(const void* kernel) {
  static thread_local std::set<std::pair<const void*, int>> granted;
  int device = 0, most = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (!granted.insert({kernel, device}).second) return cudaSuccess;
  cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error != cudaSuccess) granted.erase({kernel, device});
  return error;
}

// Starts a kernel with so many bytes of shared memory. Null, or what went wrong.
template <class... Parameters>
const char* launch_kernel(void (*kernel)(Parameters...), size_t shared_bytes, int64_t blocks, int threads,
                          Stream stream, const Parameters&... parameters) {
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 << 10) error = ask_for_shared_memory(reinterpret_cast<const void*>(kernel));
  if (error == cudaSuccess) {
    kernel<<<unsigned(blocks), unsigned(threads), shared_bytes, static_cast<cudaStream_t>(stream)>>>(parameters...);
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace pw

#else
#include "../emulate/block.h"
#include "../emulate/matrix.h"

#define PW_DEVICE inline
#define PW_KERNEL(threads, blocks) void
#define PW_PARAMETER const
#define PW_CALLED inline

namespace pw {

PW_DEVICE int thread_index() { return emulate::Grid::current().thread(); }
PW_DEVICE int64_t block_index() { return emulate::Grid::current().block(); }
PW_DEVICE int64_t grid_size() { return emulate::Grid::current().blocks(); }
PW_DEVICE void sync_threads(int line = __builtin_LINE()) { emulate::Grid::current().barrier(line); }
PW_DEVICE void sync_warp(int line = __builtin_LINE()) { emulate::Grid::current().exchange(&line, sizeof(line), line); }

template <class T>
PW_DEVICE T& shared_memory() {
  return *static_cast<T*>(emulate::Grid::current().shared(sizeof(T)));
}

PW_DEVICE uint32_t pinned(uint32_t value) { return value; }

PW_DEVICE uint32_t shuffle_xor(uint32_t value, int other, int line = __builtin_LINE()) {
  const char* all = emulate::Grid::current().exchange(&value, sizeof(value), line);
  uint32_t theirs;
  memcpy(&theirs, all + (thread_index() % emulate::kWarp ^ other) * emulate::kExchange, sizeof(theirs));
  return theirs;
}

template <class T>
PW_DEVICE uint32_t narrow_pair(float low, float high) {
  return narrow<T>(low).bits | uint32_t(narrow<T>(high).bits) << 16;
}

template <class T>
PW_DEVICE uint32_t max_pair(uint32_t a, uint32_t b) {
  const auto larger = [](T x, T y) { return widen(x) != widen(x) || widen(x) > widen(y) ? x.bits : y.bits; };
  const auto half = [&](int i) { return uint32_t(larger(T{uint16_t(a >> i)}, T{uint16_t(b >> i)})) << i; };
  return half(0) | half(16);
}

template <int BYTES>
PW_DEVICE void copy_async(void* shared, const void* global, int bytes) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "sizes that cp.async has");
  emulate::Grid::current().copies().add(shared, global, BYTES, bytes);
}
PW_DEVICE void prefetch_global(const void*) {}
PW_DEVICE void copy_async_commit() { emulate::Grid::current().copies().commit(); }
template <int PENDING>
PW_DEVICE void copy_async_wait() {
  emulate::Grid::current().copies().wait(PENDING);
}

template <bool TRANSPOSED>
PW_DEVICE void load_matrices(uint32_t (&to)[4], const void* row, int line = __builtin_LINE()) {
  emulate::load_matrices(to, row, TRANSPOSED, line);
}
template <class Address>
PW_DEVICE void store_matrices(Address address, const uint32_t (&from)[4]) {
  for (int m = 0; m < 4; ++m)
    memcpy(address(m, thread_index() % 32 / 4) + thread_index() % 4 * 4, &from[m], sizeof(from[m]));
}
template <class T>
PW_DEVICE void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                int line = __builtin_LINE()) {
  emulate::multiply<2>(d, a, b, [](uint32_t v, int half) { return widen(T{uint16_t(v >> 16 * half)}); }, line);
}
PW_DEVICE void multiply_16x8x8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                               int line = __builtin_LINE()) {
  emulate::multiply<1>(d, a, b, [](uint32_t v, int) { return bit_cast<float>(v & 0xffffe000); }, line);
}
PW_DEVICE uint32_t round_tf32(float v) {
  const uint32_t bits = bit_cast<uint32_t>(v);
  return v != v ? 0x7fffffff : (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & 0xffffe000;
}

template <class... Parameters>
const char* launch_kernel(void (*kernel)(Parameters...), size_t shared_bytes, int64_t blocks, int threads,
                          Stream stream, const Parameters&... parameters) {
  const auto& schedule = *static_cast<const emulate::Schedule*>(stream);
  emulate::Grid::run(blocks, threads, shared_bytes, schedule, [&] { kernel(parameters...); });
  return nullptr;
}

}  // namespace pw
#endif
