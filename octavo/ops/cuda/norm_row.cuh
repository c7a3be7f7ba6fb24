// Residual add, RMSNorm and quantization of one row, which stays in the registers of a block of threads in
// between. The order of its sum depends on the number of columns only.
#pragma once

#include <cstdint>

#include "octavo/base/dtype.h"
#include "octavo/quant/cuda/group_quantizer.cuh"
#include "octavo/quant/cuda/vector_io.cuh"

namespace octavo::cuda {

// Threads that share a row; a thread holds eight columns of every kNormThreads · 8. Threads without columns
// (as few columns as there may be) add zeros, so a block may as well do without them.
inline constexpr int kNormThreads = 512;
inline constexpr int norm_vectors(std::int64_t cols) {
  return static_cast<int>((cols + kNormThreads * 8 - 1) / (kNormThreads * 8));
}

struct NormTask {
  float* residual;
  const float* weight;
  float eps;
  void* out;
  float* scales;  // null: out is bf16
  int cols;
  bool pow2;
  const std::int32_t* rows;  // tokens, packed in out, whose residual is left; null: all
};

template <int kVectors>
struct NormRow {
  const NormTask& task;
  int thread;
  float weight[kVectors][8] = {};

  __device__ std::int64_t token(std::int64_t row) const {
    return task.rows == nullptr ? row : task.rows[row];
  }
  __device__ int column(int i) const { return (thread + i * kNormThreads) * 8; }
  __device__ bool whole(int column) const { return task.cols % 8 == 0 && column + 8 <= task.cols; }

  __device__ NormRow(const NormTask& task, int thread) : task(task), thread(thread) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      load8(task.weight + column(i), whole(column(i)), task.cols - column(i), weight[i]);
  }

  // By `threads` threads, whole warps; of_warp: a float in shared memory for each; sync() waits for them all.
  // take_delta(column, d) gives eight columns of what is added to the residual; false: nothing is.
  template <typename Sync, typename TakeDelta>
  __device__ void run(std::int64_t row, int threads, float* of_warp, const Sync& sync,
                      const TakeDelta& take_delta) const {
    float* const residual = task.residual + token(row) * task.cols;
    float x[kVectors][8];
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int col = column(i);
      const int count = min(8, task.cols - col);
      load8(residual + col, whole(col), count, x[i]);
      float d[8];
      if (count > 0 && take_delta(col, d)) {
#pragma unroll
        for (int j = 0; j < 8; ++j) x[i][j] = __fadd_rn(x[i][j], d[j]);
        if (task.rows == nullptr) store8(residual + col, whole(col), count, x[i]);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) squares = __fmaf_rn(x[i][j], x[i][j], squares);
    }
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) squares += __shfl_xor_sync(0xffffffffU, squares, lane);
    if (thread % 32 == 0) of_warp[thread / 32] = squares;
    sync();
    float total = 0;
    for (int warp = 0; warp < threads / 32; ++warp) total += of_warp[warp];
    const float mean = __fdiv_rn(total, static_cast<float>(task.cols));
    const float scale = __fdiv_rn(1.0F, __fsqrt_rn(mean + task.eps));
    const ActivationRow out = ActivationRow::of(task.out, task.scales, row, task.cols, task.pow2);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) x[i][j] = __fmul_rn(__fmul_rn(x[i][j], scale), weight[i][j]);
      write_activation(out, column(i), x[i]);
    }
  }
};

}  // namespace octavo::cuda
