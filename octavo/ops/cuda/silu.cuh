#pragma once

#include "octavo/ops/cuda/hopper.cuh"

namespace octavo::cuda {

// The hardware's exponential and reciprocal are good to 2^-21, far below bf16's 2^-9, and leave a kernel
// bound by memory, which exact ones would not.
__device__ inline float silu(float gate) {
  constexpr float kLog2E = 1.44269504F;
  return __fdividef(gate, 1.0F + exp2_fast(gate * -kLog2E));
}

}  // namespace octavo::cuda
