// Rows of the embedding as the FP32 residual stream, and copies of cache blocks.
#include "octavo/ops/cuda/kernels.h"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/cuda/vector_io.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    embed_kernel(const bf16* table, int hidden, const std::int32_t* token_ids, float* residual) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t token = blockIdx.x;
  const bf16* const row = table + static_cast<std::int64_t>(token_ids[token]) * hidden;
  for (int col = static_cast<int>(threadIdx.x) * 8; col < hidden; col += kThreads * 8) {
    const int count = min(8, hidden - col);
    const bool whole = count == 8 && hidden % 8 == 0;
    float v[8];
    load8(row + col, whole, count, v);
    store8(residual + token * hidden + col, whole, count, v);
  }
}

}  // namespace

void embed(const bf16* table, std::int64_t hidden, const std::int32_t* token_ids, std::int64_t tokens,
           float* residual, cudaStream_t stream) {
  if (tokens == 0) return;
  launch(embed_kernel, dim3(static_cast<unsigned>(tokens)), dim3(kThreads), 0, stream, table,
         static_cast<int>(hidden), token_ids, residual);
}

void copy_kv_block(const KvLayer* layers, std::int64_t num_layers, const KvGeometry& geometry,
                   std::int32_t from, std::int32_t to, cudaStream_t stream) {
  const std::int64_t elements = geometry.block_elements();
  for (std::int64_t i = 0; i < num_layers; ++i)
    for (void* side : {layers[i].keys, layers[i].values}) {
      auto* base = static_cast<bf16*>(side);
      check(cudaMemcpyAsync(base + to * elements, base + from * elements,
                            static_cast<std::size_t>(elements) * sizeof(bf16), cudaMemcpyDeviceToDevice,
                            stream),
            "copy of a cache block");
    }
}

}  // namespace octavo::cuda
