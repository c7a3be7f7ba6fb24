#include "octavo/quant/cuda/activation_quantizer.h"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/cuda/group_quantizer.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

// A thread takes eight columns of one row. Grid: rows × pieces of 2048 columns.
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const bf16* x, int cols, bool pow2, std::uint8_t* codes, float* scales) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t row = blockIdx.x;
  const int col = static_cast<int>(blockIdx.y * kThreads + threadIdx.x) * 8;
  float v[8];
  load8(x + row * cols + col, col + 8 <= cols && cols % 8 == 0, cols - col, v);
  write_activation({codes + row * cols, scales + row * scale_pitch(cols), cols, pow2}, col, v);
}

}  // namespace

void quantize_activations(const bf16* x, std::int64_t rows, std::int64_t cols, bool pow2, std::uint8_t* codes,
                          float* scales, cudaStream_t stream) {
  if (rows == 0) return;
  const dim3 grid(static_cast<unsigned>(rows),
                  static_cast<unsigned>((cols + kThreads * 8 - 1) / (kThreads * 8)));
  launch(quantize_kernel, grid, dim3(kThreads), 0, stream, x, static_cast<int>(cols), pow2, codes, scales);
}

}  // namespace octavo::cuda
