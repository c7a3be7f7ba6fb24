#include <cuda_fp8.h>

#include "octavo/ops/cuda/plain_linear.h"
#include "octavo/quant/block_scaling.h"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/cuda/vector_io.cuh"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kTokens = 8;

__device__ float to_f32(bf16 v) { return __uint_as_float(std::uint32_t{v.bits} << 16); }
__device__ float to_f32(std::uint8_t code) {
  const __half_raw half = __nv_cvt_fp8_to_halfraw(code, __NV_E4M3);
  return __half2float(*reinterpret_cast<const __half*>(&half));
}

struct Task {
  std::int64_t tokens;
  std::int64_t out;
  std::int64_t in;
  const void* weight;
  const void* x;
  const float* bias;
  bf16* y;
  float* y_f32;
  std::int64_t y_stride;
  // FP8 only.
  const float* weight_scales;
  const std::int32_t* scale_rows;
  const float* x_scales;
};

// A warp adds up a block of 128 of K, four values a lane, and blocks in rising order.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32) plain_kernel(const __grid_constant__ Task a) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  constexpr bool kFp8 = sizeof(T) == 1;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t n = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (n >= a.out) return;
  const T* const w = static_cast<const T*>(a.weight) + n * a.in;
  const std::int64_t blocks = blocks_of(a.in);
  for (std::int64_t t = std::int64_t{blockIdx.y} * kTokens;
       t < min(a.tokens, (blockIdx.y + std::int64_t{1}) * kTokens); ++t) {
    const T* const x = static_cast<const T*>(a.x) + t * a.in;
    float total = 0;
    for (std::int64_t block = 0; block < blocks; ++block) {
      float sum = 0;
      for (int i = lane; i < kBlock; i += 32) {
        const std::int64_t k = block * kBlock + i;
        if (k < a.in) sum = __fmaf_rn(to_f32(w[k]), to_f32(x[k]), sum);
      }
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffU, sum, step);
      if constexpr (kFp8) {
        const float scale = __fmul_rn(a.x_scales[t * scale_pitch(a.in) + block],
                                      a.weight_scales[a.scale_rows[n / 16] * blocks + block]);
        total = __fmaf_rn(sum, scale, total);
      } else {
        total = __fadd_rn(total, sum);
      }
    }
    if (lane != 0) continue;
    if (a.bias != nullptr) total = __fadd_rn(total, a.bias[n]);
    if (a.y_f32 != nullptr) {
      a.y_f32[t * a.y_stride + n] = total;
    } else {
      a.y[t * a.y_stride + n].bits = static_cast<std::uint16_t>(pack_bf16(total, 0.0F));
    }
  }
}

template <typename T>
void run(const Task& task, cudaStream_t stream) {
  if (task.tokens == 0) return;
  launch(plain_kernel<T>,
         dim3(static_cast<unsigned>((task.out + kWarps - 1) / kWarps),
              static_cast<unsigned>((task.tokens + kTokens - 1) / kTokens)),
         dim3(kWarps * 32), 0, stream, task);
}

}  // namespace

void plain_linear(const Fp8Gemm& g, cudaStream_t stream) {
  run<std::uint8_t>({g.tokens, g.out, g.in, g.weight, g.x, g.bias, g.y, nullptr, g.y_stride, g.weight_scales,
                     g.scale_rows, g.x_scales},
                    stream);
}

void plain_linear(const Bf16Gemm& g, cudaStream_t stream) {
  run<bf16>({g.tokens, g.out, g.in, g.weight, g.x, g.bias, g.y, g.y_f32, g.y_stride == 0 ? g.out : g.y_stride,
             nullptr, nullptr, nullptr},
            stream);
}

}  // namespace octavo::cuda
