// The FP8 linear layer, plainly: a thread computes one element. Right, and far from fast.
#include <cuda_fp8.h>

#include "octavo/ops/cuda/gemm.h"
#include "octavo/quant/block_scaling.h"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/cuda/vector_io.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 128;

__device__ float value(std::uint8_t code) {
  __nv_fp8_e4m3 v;
  v.__x = code;
  return static_cast<float>(v);
}

__global__ void __launch_bounds__(kThreads) plain_kernel(Fp8Gemm g) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t n = blockIdx.x * kThreads + threadIdx.x;
  const std::int64_t t = blockIdx.y;
  if (n >= g.out) return;
  const std::int64_t blocks = blocks_of(g.in);
  float sum = 0;
  for (std::int64_t b = 0; b < blocks; ++b) {
    float block = 0;
    for (std::int64_t k = b * kBlock; k < min(g.in, (b + 1) * kBlock); ++k)
      block = __fmaf_rn(value(g.x[t * g.in + k]), value(g.weight[n * g.in + k]), block);
    const float scale =
        __fmul_rn(g.x_scales[t * blocks + b], g.weight_scales[g.scale_rows[n / 16] * blocks + b]);
    sum = __fmaf_rn(block, scale, sum);
  }
  if (g.bias != nullptr) sum = __fadd_rn(sum, g.bias[n]);
  g.y[t * g.y_stride + n].bits = static_cast<std::uint16_t>(pack_bf16(sum, 0.0F));
}

}  // namespace

void fp8_gemm(const Fp8Gemm& gemm, cudaStream_t stream) {
  if (gemm.tokens == 0) return;
  const dim3 grid(static_cast<unsigned>((gemm.out + kThreads - 1) / kThreads),
                  static_cast<unsigned>(gemm.tokens));
  launch(plain_kernel, grid, dim3(kThreads), 0, stream, gemm);
}

}  // namespace octavo::cuda
