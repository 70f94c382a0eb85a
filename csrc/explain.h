// The plan of a call of the operator conv; nothing is computed.
#pragma once
#include <string>
#include <vector>

#include "ops.h"

namespace pw {

// One line for each launch or parallel region.
std::vector<std::string> explain_conv(PW_CONV_ARGS);

// A launch as the CUDA plans predict it for an H200.
struct Prediction {
  std::string kernel;           // with its tile
  int64_t m = 0, n = 0, k = 0;  // of the product; 0 for what is none
  int64_t blocks = 0;
  double memory = 0, cache = 0;  // bytes: of device memory if every operand is read once; that tiles read
  double microseconds = 0;
};

// The launches of a call on CUDA or, where `gradients` (of each input, weight and bias) are wanted, of its backward
// pass, whatever device the tensors are on, with what force_cuda_plan decided.
std::vector<Prediction> predict_cuda(PW_CONV_ARGS, bool tf32, const std::vector<bool>& gradients);

}  // namespace pw
