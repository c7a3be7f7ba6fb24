#include "octavo/ops/cuda/cublaslt_kernels.h"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/cuda/vector_io.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    transpose_kernel(const float* from, int rows, int from_stride, float* to, int to_stride) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int row = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const int col = static_cast<int>(blockIdx.y);
  if (row >= to_stride) return;
  to[static_cast<std::int64_t>(col) * to_stride + row] =
      row < rows ? from[static_cast<std::int64_t>(row) * from_stride + col] : 0.0F;
}

__global__ void __launch_bounds__(kThreads) round_kernel(const float* from, int count, bf16* to) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i < count) to[i].bits = static_cast<std::uint16_t>(pack_bf16(from[i], 0.0F));
}

unsigned blocks_for(std::int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

}  // namespace

void transpose_scales(const float* from, std::int64_t rows, std::int64_t cols, std::int64_t from_stride,
                      float* to, std::int64_t to_stride, cudaStream_t stream) {
  launch(transpose_kernel, dim3(blocks_for(to_stride), static_cast<unsigned>(cols)), dim3(kThreads), 0,
         stream, from, static_cast<int>(rows), static_cast<int>(from_stride), to,
         static_cast<int>(to_stride));
}

void round_to_bf16(const float* from, std::int64_t count, bf16* to, cudaStream_t stream) {
  launch(round_kernel, dim3(blocks_for(count)), dim3(kThreads), 0, stream, from, static_cast<int>(count), to);
}

}  // namespace octavo::cuda
