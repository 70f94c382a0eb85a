// A CUDA runtime that has a GPU in name only, for LD_PRELOAD: memory is the host's, copies are done at once, and the
// kernels whose PTX it is given are run by machine.h. Others, PyTorch's own, are only noted. So what nvcc made of the
// kernels is tested where there is no GPU, and what the host does for a call: its launches, its memory, its waits, and
// its time but for the driver's.
#include "device.h"

namespace {

using namespace ptx;

template <class T>
cudaError_t give(T* to, T value) {
  *to = value;
  return cudaSuccess;
}
template <class T>
cudaError_t handle(T* to) {
  return give(to, reinterpret_cast<T>(std::malloc(16)));
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// For the tests
void ptx_reset() { calls() = {}; }
const char* ptx_launches() { return calls().launches.c_str(); }
int64_t ptx_waits() { return calls().waits; }
int64_t ptx_memory_calls() { return calls().memory; }

// Kernels
void** __cudaRegisterFatBinary(void*) { return static_cast<void**>(std::malloc(16)); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  const std::lock_guard<std::mutex> lock(mutex());
  kernels()[function].name = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  configured = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configured.grid, *block = configured.block, *shared = configured.shared;
  return give(static_cast<cudaStream_t*>(stream), configured.stream);
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  return give(kernel, static_cast<cudaKernel_t>(const_cast<void*>(function)));
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                               cudaStream_t) {
  return launch(kernel, grid, block, shared, arguments);
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t) {
  return launch(function, grid, block, shared, arguments);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* function, void** arguments) {
  return launch(function, c->gridDim, c->blockDim, c->dynamicSmemBytes, arguments);
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  const std::lock_guard<std::mutex> lock(mutex());
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > kSharedOptin) return cudaErrorInvalidValue;
  kernels()[function].shared = value;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* to, const void*) {
  *to = {};
  to->maxThreadsPerBlock = 1024, to->numRegs = 32;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int, size_t, unsigned) {
  return give(n, 1);
}

// The device
cudaError_t cudaGetDeviceCount(int* n) { return give(n, 1); }
cudaError_t cudaGetDevice(int* n) { return give(n, 0); }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* n) { return give(n, 13000); }
cudaError_t cudaRuntimeGetVersion(int* n) { return give(n, 13000); }
cudaError_t cudaDeviceCanAccessPeer(int* n, int, int) { return give(n, 0); }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* most) {
  *least = 0;
  return give(most, -5);
}
cudaError_t cudaDeviceGetAttribute(int* to, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return give(to, kSharedOptin);
    case cudaDevAttrMultiProcessorCount:
      return give(to, kMultiprocessors);
    case cudaDevAttrComputeCapabilityMajor:
      return give(to, 9);
    default:
      return give(to, 0);
  }
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* to, int) {
  *to = {};
  std::strcpy(to->name, "a GPU in name only");
  to->major = 9, to->multiProcessorCount = kMultiprocessors, to->warpSize = 32, to->totalGlobalMem = kMemory;
  to->sharedMemPerBlock = kSharedPerBlock, to->sharedMemPerBlockOptin = kSharedOptin;
  to->sharedMemPerMultiprocessor = 228 << 10, to->maxThreadsPerMultiProcessor = 2048, to->maxThreadsPerBlock = 1024;
  to->regsPerBlock = to->regsPerMultiprocessor = 65536, to->l2CacheSize = 50 << 20;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return wait(); }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorIllegalAddress ? calls().fault.c_str() : "a launch that no GPU would take";
}

// Memory
cudaError_t cudaMalloc(void** to, size_t bytes) { return allocate(to, bytes); }
cudaError_t cudaFree(void* at) { return release(at); }
cudaError_t cudaHostAlloc(void** to, size_t bytes, unsigned) { return allocate(to, bytes); }
cudaError_t cudaFreeHost(void* at) { return release(at); }
cudaError_t cudaMemGetInfo(size_t* free, size_t* all) {
  *free = kMemory;
  return give(all, kMemory);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* to, const void* at) {
  *to = {};
  const std::lock_guard<std::mutex> lock(mutex());
  to->type = on_device(at, 1) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memmove(to, from, bytes);
  return wait();
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

// Streams and events
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return handle(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return wait(); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* n) { return give(n, 0); }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* to) {
  return give(to, cudaStreamCaptureStatusNone);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* event) { return handle(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return handle(event); }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return wait(); }
cudaError_t cudaEventElapsedTime(float* to, cudaEvent_t, cudaEvent_t) { return give(to, 0.0f); }

// The driver, as far as torch links it
int cuDeviceGet(int* to, int) { return give(to, 0), 0; }
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { return *flags = 0, *active = 1, 0; }
#define PW_NO_DRIVER(name) \
  int name() { return 801; }  // CUDA_ERROR_NOT_SUPPORTED
PW_NO_DRIVER(cuCtxGetCurrent)
PW_NO_DRIVER(cuCtxSetCurrent)
PW_NO_DRIVER(cuDeviceGetAttribute)
PW_NO_DRIVER(cuDevicePrimaryCtxRetain)
PW_NO_DRIVER(cuFuncGetAttribute)
PW_NO_DRIVER(cuFuncSetAttribute)
PW_NO_DRIVER(cuFuncSetCacheConfig)
PW_NO_DRIVER(cuGetErrorString)
PW_NO_DRIVER(cuLaunchCooperativeKernel)
PW_NO_DRIVER(cuLaunchKernel)
PW_NO_DRIVER(cuLinkAddData_v2)
PW_NO_DRIVER(cuLinkComplete)
PW_NO_DRIVER(cuLinkCreate_v2)
PW_NO_DRIVER(cuModuleGetFunction)
PW_NO_DRIVER(cuModuleLoad)
PW_NO_DRIVER(cuModuleLoadData)
PW_NO_DRIVER(cuModuleLoadDataEx)
PW_NO_DRIVER(cuModuleUnload)
PW_NO_DRIVER(cuOccupancyMaxActiveBlocksPerMultiprocessor)
PW_NO_DRIVER(cuPointerGetAttribute)
PW_NO_DRIVER(cuTensorMapEncodeTiled)

}  // extern "C"
#pragma GCC visibility pop
