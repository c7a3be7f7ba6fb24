// SiLU(gate) · up and quantization in one pass.
#include "octavo/ops/cuda/kernels.h"
#include "octavo/ops/cuda/silu.cuh"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/cuda/group_quantizer.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

// A thread takes eight columns of one token. Grid: tokens × pieces of 2048 columns.
__global__ void __launch_bounds__(kThreads)
    silu_kernel(const bf16* gate_up, std::int64_t gate_up_cols, std::int64_t up_begin, bool aligned,
                void* out, float* scales, int cols, bool pow2) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t token = blockIdx.x;
  const int col = static_cast<int>(blockIdx.y * kThreads + threadIdx.x) * 8;
  const int count = min(8, cols - col);
  const bool whole = aligned && count == 8;
  const bf16* const gate = gate_up + token * gate_up_cols + col;
  float g[8];
  float u[8];
  load8(gate, whole, count, g);
  load8(gate + up_begin, whole, count, u);
#pragma unroll
  for (int i = 0; i < 8; ++i) g[i] = silu(g[i]) * u[i];
  write_activation(ActivationRow::of(out, scales, token, cols, pow2), col, g);
}

}  // namespace

void silu_mul(const bf16* gate_up, std::int64_t tokens, std::int64_t gate_up_cols, std::int64_t up_begin,
              const Activation& out, cudaStream_t stream) {
  if (tokens == 0) return;
  const dim3 grid(static_cast<unsigned>(tokens),
                  static_cast<unsigned>((out.cols + kThreads * 8 - 1) / (kThreads * 8)));
  const bool aligned = gate_up_cols % 8 == 0 && up_begin % 8 == 0;
  launch(silu_kernel, grid, dim3(kThreads), 0, stream, gate_up, gate_up_cols, up_begin, aligned,
         static_cast<void*>(out.data), out.scales, static_cast<int>(out.cols), out.pow2);
}

}  // namespace octavo::cuda
