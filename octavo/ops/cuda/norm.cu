// Residual add, RMSNorm and quantization in one pass over a row, which stays in registers in between.
#include "octavo/ops/cuda/kernels.h"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/cuda/group_quantizer.cuh"

namespace octavo::cuda {
namespace {

constexpr int kMaxThreads = 512;

struct NormTask {
  float* residual;
  const bf16* delta;
  std::int64_t delta_stride;
  const float* weight;
  float eps;
  void* out;
  float* scales;
  int cols;
  bool pow2;
  const std::int32_t* rows;
};

__device__ float block_sum(float value) {
  __shared__ float of_warp[kMaxThreads / 32];
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffU, value, lane);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += of_warp[warp];
  return total;
}

// One block of threads a row; a thread holds kVectors times eight columns.
template <int kVectors>
__global__ void __launch_bounds__(kMaxThreads) norm_kernel(NormTask task) {
  const int step = static_cast<int>(blockDim.x) * 8;
  const bool aligned = task.cols % 8 == 0;
  float weight[kVectors][8];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int col = static_cast<int>(threadIdx.x) * 8 + i * step;
    const int count = min(8, task.cols - col);
    load8(task.weight + col, aligned && count == 8, count, weight[i]);
  }
  wait_for_previous_kernel();
  let_next_kernel_start();

  const std::int64_t token = task.rows == nullptr ? blockIdx.x : task.rows[blockIdx.x];
  float* const residual = task.residual + token * task.cols;
  const bf16* const delta = task.delta + token * task.delta_stride;
  float x[kVectors][8];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int col = static_cast<int>(threadIdx.x) * 8 + i * step;
    const int count = min(8, task.cols - col);
    const bool whole = aligned && count == 8;
    load8(residual + col, whole, count, x[i]);
    if (task.delta != nullptr) {
      float d[8];
      load8(delta + col, whole, count, d);
#pragma unroll
      for (int j = 0; j < 8; ++j) x[i][j] = __fadd_rn(x[i][j], d[j]);
      if (task.rows == nullptr && count > 0) store8(residual + col, whole, count, x[i]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) squares = __fmaf_rn(x[i][j], x[i][j], squares);
  }
  const float mean = __fdiv_rn(block_sum(squares), static_cast<float>(task.cols));
  const float scale = __fdiv_rn(1.0F, __fsqrt_rn(mean + task.eps));
  const std::int64_t row = blockIdx.x;
  const ActivationRow out{
      task.scales == nullptr ? static_cast<void*>(static_cast<bf16*>(task.out) + row * task.cols)
                             : static_cast<void*>(static_cast<std::uint8_t*>(task.out) + row * task.cols),
      task.scales == nullptr ? nullptr : task.scales + row * blocks_of(task.cols), task.cols, task.pow2};
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) x[i][j] = __fmul_rn(__fmul_rn(x[i][j], scale), weight[i][j]);
    write_activation(out, static_cast<int>(threadIdx.x) * 8 + i * step, x[i]);
  }
}

template <int kVectors>
void run(const NormTask& task, std::int64_t count, cudaStream_t stream) {
  const int vectors = (task.cols + 7) / 8;
  const int threads = ((vectors + kVectors - 1) / kVectors + 31) / 32 * 32;
  launch(norm_kernel<kVectors>, dim3(static_cast<unsigned>(count)), dim3(static_cast<unsigned>(threads)), 0,
         stream, task);
}

}  // namespace

void add_rms_norm(float* residual, const bf16* delta, std::int64_t delta_stride, std::int64_t count,
                  const float* weight, float eps, const Activation& out, const std::int32_t* rows,
                  cudaStream_t stream) {
  if (count == 0) return;
  const NormTask task{residual, delta,    delta_stride, weight,
                      eps,      out.data, out.scales,   static_cast<int>(out.cols),
                      out.pow2, rows};
  if (out.cols <= kMaxThreads * 8) return run<1>(task, count, stream);
  if (out.cols <= kMaxThreads * 16) return run<2>(task, count, stream);
  run<4>(task, count, stream);
}

}  // namespace octavo::cuda
