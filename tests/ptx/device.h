// The GPU in name only: its memory, what is asked of it, and how it runs kernels.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "machine.h"
#include "parser.h"

namespace ptx {

constexpr size_t kMemory = size_t(8) << 30;
constexpr int kSharedPerBlock = 48 << 10, kSharedOptin = 227 << 10, kMultiprocessors = 132;

struct Kernel {
  std::string name;
  int shared = kSharedPerBlock;  // that a launch may ask for
};
struct Calls {
  std::string launches;  // a line each: threads, blocks, bytes of shared memory, whether they may be, name
  std::string fault;     // of the last kernel that went wrong
  int64_t waits = 0, memory = 0;
};

// Other libraries register their kernels before this one's objects are made.
inline std::unordered_map<const void*, Kernel>& kernels() {
  static auto* const all = new std::unordered_map<const void*, Kernel>;
  return *all;
}
inline Calls& calls() {
  static auto* const all = new Calls;
  return *all;
}
inline std::map<uintptr_t, size_t>& memory() {
  static auto* const all = new std::map<uintptr_t, size_t>;
  return *all;
}
inline std::mutex& mutex() {
  static auto* const one = new std::mutex;
  return *one;
}

thread_local cudaError_t last_error = cudaSuccess;
thread_local struct {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
} configured;

inline cudaError_t wait() {
  ++calls().waits;
  return cudaSuccess;
}

inline cudaError_t allocate(void** to, size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex());
  ++calls().memory;
  *to = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
  memory()[uintptr_t(*to)] = bytes;
  return cudaSuccess;
}
inline cudaError_t release(void* at) {
  const std::lock_guard<std::mutex> lock(mutex());
  ++calls().memory;
  memory().erase(uintptr_t(at));
  std::free(at);
  return cudaSuccess;
}
inline bool on_device(const void* at, size_t size) {
  const auto next = memory().upper_bound(uintptr_t(at));
  if (next == memory().begin()) return false;
  const auto [first, bytes] = *std::prev(next);
  return uintptr_t(at) + size <= first + bytes;
}

// The kernels in the folder that PW_PTX names.
inline const Function* code_of(const std::string& name) {
  static auto* const all = [] {
    auto* const functions = new std::unordered_map<std::string, Function*>;
    if (const char* folder = std::getenv("PW_PTX"))
      for (const auto& file : std::filesystem::directory_iterator(folder)) {
        std::ifstream stream(file.path());
        const std::string text{std::istreambuf_iterator<char>(stream), {}};
        Parser(text, *functions).run();
      }
    for (const auto& [_, f] : *functions) prepare(*f);
    return functions;
  }();
  const auto found = all->find(name);
  return found == all->end() ? nullptr : found->second;
}

// PyTorch's kernel that fills contiguous memory, which gives zeros, and NaN to memory that nobody has written: N, the
// value and the address follow from its arguments. Bytes of an element, 0 for other kernels.
inline size_t filled_element(const std::string& name) {
  const size_t at =
      name.find("vectorized_elementwise_kernel") == std::string::npos ? std::string::npos : name.find("FillFunctorI");
  if (at == std::string::npos) return 0;
  const std::string type = name.substr(at + std::strlen("FillFunctorI"));
  if (type[0] == 'N') return 2;  // Half, BFloat16
  return type[0] == 'd' || type[0] == 'l' ? 8 : type[0] == 'f' || type[0] == 'i' ? 4 : 1;
}
inline void fill(size_t element, void** arguments) {
  char* const to = **static_cast<char***>(static_cast<void*>(&arguments[2]));
  const int count = *static_cast<int*>(arguments[0]);
  for (int i = 0; i < count; ++i) std::memcpy(to + i * element, arguments[1], element);
}

inline cudaError_t launch(const void* function, dim3 grid, dim3 block, size_t shared, void** arguments) {
  const std::lock_guard<std::mutex> lock(mutex());
  const Kernel& f = kernels()[function];
  const auto threads = block.x * block.y * block.z;
  const bool right = threads > 0 && threads <= 1024 && grid.x > 0 && grid.x < 1u << 31 && grid.y && grid.y < 1u << 16 &&
                     grid.z && grid.z < 1u << 16 && shared <= size_t(f.shared);
  calls().launches += std::to_string(threads) + " " + std::to_string(size_t(grid.x) * grid.y * grid.z) + " " +
                      std::to_string(shared) + (right ? " right " : " wrong ") + f.name + "\n";
  if (!right) return last_error = cudaErrorInvalidValue;
  const Function* const code = code_of(f.name);
  if (!code) {
    if (const size_t element = filled_element(f.name)) fill(element, arguments);
    return cudaSuccess;
  }
  std::vector<uint64_t> params(code->parameter_bytes / 8 + 1);
  char* const to = reinterpret_cast<char*>(params.data());
  for (size_t i = 0; i < code->parameters.size(); ++i)
    std::memcpy(to + code->parameters[i].offset, arguments[i], code->parameters[i].bytes);
  try {
    run(*code, grid.x, int(threads), shared, to, on_device);
  } catch (const std::exception& e) {
    calls().fault = e.what();
    return last_error = cudaErrorIllegalAddress;
  }
  return cudaSuccess;
}

}  // namespace ptx
