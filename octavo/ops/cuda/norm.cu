// Residual add, RMSNorm and quantization in one pass: one block of threads a row.
#include "octavo/ops/cuda/kernels.h"
#include "octavo/ops/cuda/norm_row.cuh"
#include "octavo/quant/cuda/device.h"

namespace octavo::cuda {
namespace {

template <int kVectors>
__global__ void __launch_bounds__(kNormThreads)
    norm_kernel(NormTask task, const bf16* delta, std::int64_t delta_stride) {
  __shared__ float of_warp[kNormThreads / 32];
  const NormRow<kVectors> norm(task, static_cast<int>(threadIdx.x));
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t token = norm.token(blockIdx.x);
  norm.run(
      blockIdx.x, static_cast<int>(blockDim.x), of_warp, [] { __syncthreads(); },
      [&](int column, float(&d)[8]) {
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
  const auto run = [&](auto kernel) {
    const auto threads = vectors > 1 ? kNormThreads : (out.cols + 8 * 32 - 1) / (8 * 32) * 32;
    launch(kernel, dim3(static_cast<unsigned>(count)), dim3(static_cast<unsigned>(threads)), 0, stream, task,
           delta, delta_stride);
  };
  if (vectors == 1) return run(norm_kernel<1>);
  if (vectors == 2) return run(norm_kernel<2>);
  run(norm_kernel<4>);
}

}  // namespace octavo::cuda
