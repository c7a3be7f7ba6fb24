// Residual add, RMSNorm and quantization in one pass: one block of threads a row, or two.
#include "octavo/ops/cuda/kernels.h"
#include "octavo/ops/cuda/norm_row.cuh"
#include "octavo/quant/cuda/device.h"

namespace octavo::cuda {
namespace {

// A block's threads: those of a row × kRows.
template <int kVectors, int kRows>
__global__ void __launch_bounds__(kNormThreads* kRows)
    norm_kernel(NormTask task, const bf16* delta, std::int64_t delta_stride, std::int64_t count) {
  __shared__ float of_warp[kRows][kNormThreads / 32];
  const NormRow<kVectors> norm(task, static_cast<int>(threadIdx.x));
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t row = blockIdx.x * std::int64_t{kRows} + threadIdx.y;
  if (row >= count) return;
  const std::int64_t token = norm.token(row);
  const auto sync_row = [] {
    if constexpr (kRows == 1)
      __syncthreads();
    else
      asm volatile("bar.sync %0, %1;" ::"r"(1 + threadIdx.y), "r"(blockDim.x) : "memory");
  };
  norm.run(row, static_cast<int>(blockDim.x), of_warp[threadIdx.y], sync_row, [&](int column, float(&d)[8]) {
    if (delta == nullptr) return false;
    load8(delta + token * delta_stride + column, norm.whole(column), task.cols - column, d);
    return true;
  });
}

}  // namespace

void add_rms_norm(float* residual, const bf16* delta, std::int64_t delta_stride, std::int64_t count,
                  const float* weight, float eps, const Activation& out, const std::int32_t* rows,
                  cudaStream_t stream) {
  if (count == 0) return;
  const NormTask task{residual, weight, eps, out.data, out.scales, static_cast<int>(out.cols),
                      out.pow2, rows};
  const int vectors = norm_vectors(out.cols);
  const auto run = [&](auto kernel, unsigned rows_of_block) {
    const auto threads = vectors > 1 ? kNormThreads : (out.cols + 8 * 32 - 1) / (8 * 32) * 32;
    const auto blocks = static_cast<unsigned>((count + rows_of_block - 1) / rows_of_block);
    launch(kernel, dim3(blocks), dim3(static_cast<unsigned>(threads), rows_of_block), 0, stream, task, delta,
           delta_stride, count);
  };
  // As long as all rows are computed at once (a multiprocessor holds one such block), two a block leave more
  // multiprocessors free for the blocks of the GEMM behind (docs/results/gpu-engine.md).
  const bool in_twos = count >= 32 && count <= std::int64_t{2} * multiprocessors();
  if (vectors == 1) return in_twos ? run(norm_kernel<1, 2>, 2) : run(norm_kernel<1, 1>, 1);
  if (vectors == 2) return run(norm_kernel<2, 1>, 1);
  run(norm_kernel<4, 1>, 1);
}

}  // namespace octavo::cuda
