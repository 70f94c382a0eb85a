// The module _C: facts about the build and the machine. Tensors go through the dispatcher (ops.cpp), not through here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/kernels.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def(
      "cpu_capability", [] { return std::string(pw::cpu::kernels().name); },
      "The CPU kernels in use: the best this processor supports, or those named by POINTWISE_EXT_CPU.");
  m.def(
      "cpu_capabilities",
      [] {
        std::vector<std::pair<std::string, bool>> all;
        for (const auto* k = pw::cpu::all_kernels(); *k; ++k) all.emplace_back((*k)->name, (*k)->supported());
        return all;
      },
      "All CPU kernels of this build, best first, each with whether this processor supports it.");
  m.def(
      "has_cuda",
      [] {
#ifdef WITH_CUDA
        return true;
#else
        return false;
#endif
      },
      "Whether this build contains the CUDA kernels.");
}
