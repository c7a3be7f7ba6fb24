// Rows of the embedding as the FP32 residual stream, and copies: of chosen rows, of cache blocks, and of a
// step's batch.
#include "octavo/ops/cuda/kernels.h"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/cuda/vector_io.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    embed_kernel(const bf16* table, int hidden, const std::int32_t* token_ids, float* residual,
                 const SampleResult* results) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t token = blockIdx.x;
  std::int32_t id = token_ids[token];
  // A result of -1 is a failure, which the host hears of; what follows from it is dropped there.
  if (id < 0) id = max(results[-1 - id].token, 0);
  const bf16* const row = table + static_cast<std::int64_t>(id) * hidden;
  for (int col = static_cast<int>(threadIdx.x) * 8; col < hidden; col += kThreads * 8) {
    const int count = min(8, hidden - col);
    const bool whole = count == 8 && hidden % 8 == 0;
    float v[8];
    load8(row + col, whole, count, v);
    store8(residual + token * hidden + col, whole, count, v);
  }
}

// Rows of `units` Units move to the front. A thread moves its unit of all rows: what it writes, it has read
// before, for a row never moves backwards, and no other thread does.
template <typename Unit>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(Unit* data, std::int64_t units, const std::int32_t* rows, std::int64_t count) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t unit = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (unit >= units) return;
  constexpr int kAtOnce = 16;
  for (std::int64_t first = 0; first < count; first += kAtOnce) {
    Unit held[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (first + i < count) held[i] = data[rows[first + i] * units + unit];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (first + i < count) data[(first + i) * units + unit] = held[i];
  }
}
template <typename Unit>
void pack_units(void* data, std::int64_t bytes_of_row, const std::int32_t* rows, std::int64_t count,
                cudaStream_t stream) {
  const auto units = bytes_of_row / static_cast<std::int64_t>(sizeof(Unit));
  launch(pack_kernel<Unit>, dim3(static_cast<unsigned>((units + kThreads - 1) / kThreads)), dim3(kThreads), 0,
         stream, static_cast<Unit*>(data), units, rows, count);
}

constexpr std::int64_t kLayersPerCopy = 128;
struct CopiedLayers {
  KvLayer layers[kLayersPerCopy];
};

// One cache block. Grid: layers × (keys, values).
__global__ void __launch_bounds__(kThreads)
    copy_kernel(const __grid_constant__ CopiedLayers copied, std::int64_t vectors, std::int64_t from,
                std::int64_t to) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const KvLayer& layer = copied.layers[blockIdx.x];
  auto* const side = static_cast<uint4*>(blockIdx.y == 0 ? layer.keys : layer.values);
  for (std::int64_t i = threadIdx.x; i < vectors; i += kThreads)
    side[to * vectors + i] = side[from * vectors + i];
}

// Reads before it waits: nothing on the device writes there.
__global__ void __launch_bounds__(kThreads)
    copy_from_pinned_kernel(uint4* to, const uint4* pinned, std::size_t vectors) {
  const std::size_t i = blockIdx.x * std::size_t{kThreads} + threadIdx.x;
  uint4 value{};
  if (i < vectors) value = __ldcv(pinned + i);
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (i < vectors) to[i] = value;
}

}  // namespace

void embed(const bf16* table, std::int64_t hidden, const std::int32_t* token_ids, std::int64_t tokens,
           float* residual, cudaStream_t stream, const SampleResult* results) {
  if (tokens == 0) return;
  launch(embed_kernel, dim3(static_cast<unsigned>(tokens)), dim3(kThreads), 0, stream, table,
         static_cast<int>(hidden), token_ids, residual, results);
}

void pack_rows(const std::int32_t* rows, std::int64_t count, float* residual, std::int64_t hidden,
               const Activation& x, cudaStream_t stream) {
  if (count == 0) return;
  const auto pack = [&](void* data, std::int64_t bytes_of_row) {
    const bool whole = bytes_of_row % static_cast<std::int64_t>(sizeof(uint4)) == 0 &&
                       reinterpret_cast<std::uintptr_t>(data) % sizeof(uint4) == 0;
    whole ? pack_units<uint4>(data, bytes_of_row, rows, count, stream)
          : pack_units<std::uint8_t>(data, bytes_of_row, rows, count, stream);
  };
  pack(residual, hidden * static_cast<std::int64_t>(sizeof(float)));
  const bool fp8 = x.scales != nullptr;
  pack(x.data, x.cols * static_cast<std::int64_t>(fp8 ? 1 : sizeof(bf16)));
  if (fp8) pack(x.scales, scale_pitch(x.cols) * static_cast<std::int64_t>(sizeof(float)));
}

void copy_from_pinned(void* to, const void* pinned, std::size_t bytes, cudaStream_t stream) {
  const std::size_t vectors = (bytes + sizeof(uint4) - 1) / sizeof(uint4);
  if (vectors == 0) return;
  launch(copy_from_pinned_kernel, dim3(static_cast<unsigned>((vectors + kThreads - 1) / kThreads)),
         dim3(kThreads), 0, stream, static_cast<uint4*>(to), static_cast<const uint4*>(pinned), vectors);
}

void copy_kv_block(const KvLayer* layers, std::int64_t num_layers, const KvGeometry& geometry,
                   std::int32_t from, std::int32_t to, cudaStream_t stream) {
  const std::int64_t vectors = geometry.block_elements() / 8;
  for (std::int64_t first = 0; first < num_layers; first += kLayersPerCopy) {
    const std::int64_t count = min(num_layers - first, kLayersPerCopy);
    CopiedLayers copied{};
    for (std::int64_t i = 0; i < count; ++i) copied.layers[i] = layers[first + i];
    launch(copy_kernel, dim3(static_cast<unsigned>(count), 2), dim3(kThreads), 0, stream, copied, vectors,
           static_cast<std::int64_t>(from), static_cast<std::int64_t>(to));
  }
}

}  // namespace octavo::cuda
