// The CUDA kernels of all dtypes, compiled for the host: intrin.cuh replaces the hardware by the emulator.
#include "../../csrc/cuda/launch_bf16.cu"
#include "../../csrc/cuda/launch_f16.cu"
#include "../../csrc/cuda/launch_f32.cu"
#include "../../csrc/cuda/launch_f64.cu"
