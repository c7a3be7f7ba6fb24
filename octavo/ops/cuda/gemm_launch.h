// From a linear layer's operands to a launch of a kernel: what FP8 and bf16 layers share.
#pragma once

#include "octavo/ops/cuda/gemm_task.h"

namespace octavo::cuda {

// A layer's operands without what only FP8 has but the input's scales. `x` and `weight` are dense.
struct GemmOperands {
  const char* kind;  // for messages: "FP8"
  int element_bytes;
  std::int64_t tokens, out, in;
  const void* weight;
  const void* x;
  const float* x_scales = nullptr;
  const void* y;
  std::int64_t y_stride;
  const GpcSeats* seats = nullptr;
};

// Boxes of `box_rows` rows × 128 bytes of a dense matrix [rows, cols].
CUtensorMap tensor_map(const void* data, int element_bytes, std::int64_t rows, std::int64_t cols,
                       int box_rows);
// Boxes of `box_steps` times box_rows rows × 128 bytes of an E4M3 matrix, cols a multiple of 128.
CUtensorMap stage_map(const void* data, std::int64_t rows, std::int64_t cols, int box_rows, int box_steps);

// Throws Error for sizes and alignments that the kernels cannot do.
void check_operands(const GemmOperands& operands);

// The task, apart from bias, result and those scales that come by plain loads.
GemmTask gemm_task(const GemmOperands& operands, const GemmPlan& plan);

template <typename Element>
void launch_planned(const GemmTask& task, const GemmPlan& plan, bool early, cudaStream_t stream);

}  // namespace octavo::cuda
