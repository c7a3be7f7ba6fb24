// Paged causal attention, one warp a (token, head): the plain version, for every head_dim up to 256. A result
// depends on the token's own context only, and on nothing of how prompts were cut into steps.
#include <cmath>

#include "octavo/ops/cuda/attention_kernels.h"
#include "octavo/ops/cuda/kv_layout.cuh"
#include "octavo/quant/cuda/activation_quantizer.h"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/cuda/vector_io.cuh"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxDim = 256;
constexpr int kPairs = kMaxDim / 64;  // pairs of dimensions that a lane accumulates
constexpr unsigned kAll = 0xffffffffU;

__device__ float warp_max(float v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(kAll, v, step));
  return v;
}
__device__ float warp_sum(float v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(kAll, v, step);
  return v;
}

// Online softmax (Milakov and Gimelshein, 2018) over 32 positions at a time: a lane scores one key, then all
// lanes add up the 32 values, each lane its dimensions.
__global__ void __launch_bounds__(kWarps * 32)
    attention_kernel(const bf16* qkv, DeviceBatch batch, AttentionShape shape, const bf16* keys,
                     const bf16* values, float scale, bf16* out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  __shared__ float queries[kWarps][kMaxDim];
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t token = blockIdx.x;
  const std::int64_t head = blockIdx.y * kWarps + warp;
  if (head >= shape.num_heads) return;
  const int dim = static_cast<int>(shape.head_dim);
  const int padded = padded_dim(dim);
  float* const query = queries[warp];
  const bf16* const q = qkv + token * shape.qkv_cols + shape.q_begin + head * dim;
  for (int i = lane; i < dim; i += 32) query[i] = __uint_as_float(std::uint32_t{q[i].bits} << 16);
  __syncwarp();

  const std::int64_t kv_head = head / (shape.num_heads / shape.num_kv_heads);
  const std::int64_t head_elements = static_cast<std::int64_t>(kPage) * padded;
  const std::int32_t* const blocks = batch.block_tables + batch.table_starts[token];
  const auto page = [&](const bf16* side, int position) {
    return side + (blocks[position / kPage] * shape.num_kv_heads + kv_head) * head_elements;
  };
  const int last = batch.positions[token];
  float largest = -INFINITY;
  float total = 0;
  float acc[kPairs][2] = {};
  for (int begin = 0; begin <= last; begin += 32) {
    const int position = begin + lane;
    float score = -INFINITY;
    if (position <= last) {
      const bf16* const k = page(keys, position);
      score = 0;
      for (int d = 0; d < dim; d += 8) {
        float v[8];
        load8(k + kv_offset(padded, position % kPage, d), true, 8, v);  // padding is read, and not used
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (d + j < dim) score = __fmaf_rn(query[d + j], v[j], score);
      }
      score *= scale;
    }
    const float now = fmaxf(largest, warp_max(score));
    const float keep = __expf(largest - now);
    const float weight = position <= last ? __expf(score - now) : 0.0F;
    largest = now;
    total = total * keep + warp_sum(weight);
#pragma unroll
    for (auto& pair : acc) pair[0] *= keep, pair[1] *= keep;
    const int count = min(32, last - begin + 1);
    for (int j = 0; j < count; ++j) {
      const float w = __shfl_sync(kAll, weight, j);
      const bf16* const v = page(values, begin + j);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const int d = i * 64 + lane * 2;
        if (d >= dim) continue;
        const auto pair =
            *reinterpret_cast<const std::uint32_t*>(v + kv_offset(padded, (begin + j) % kPage, d));
        acc[i][0] = __fmaf_rn(w, low_bf16(pair), acc[i][0]);
        acc[i][1] = __fmaf_rn(w, high_bf16(pair), acc[i][1]);
      }
    }
  }
  bf16* const row = out + (token * shape.num_heads + head) * dim;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int d = i * 64 + lane * 2;
    if (d < dim)
      *reinterpret_cast<std::uint32_t*>(row + d) =
          pack_bf16(__fdividef(acc[i][0], total), __fdividef(acc[i][1], total));
  }
}

}  // namespace

bool attention_quantizes(const AttentionShape& shape) {
  return gqa_attention_takes(shape) && shape.head_dim == kBlock;
}

void attention(const bf16* qkv, const DeviceBatch& batch, const AttentionShape& shape,
               const HeadRotation& rotation, const KvLayer& kv, const Activation& out, bf16* unquantized,
               cudaStream_t stream) {
  if (batch.tokens == 0) return;
  const bool gqa = gqa_attention_takes(shape);
  const auto fast = [&](const Activation& to) {
    batch.runs != nullptr ? gqa_prompt_attention(qkv, batch, shape, rotation, kv, to, stream)
                          : gqa_attention(qkv, batch, shape, rotation, kv, to, stream);
  };
  if (gqa && (out.scales == nullptr || attention_quantizes(shape))) return fast(out);
  bf16* const target = out.scales == nullptr ? out.data : unquantized;
  if (gqa) {
    fast({target, nullptr, out.cols, false});
  } else {
    const dim3 grid(static_cast<unsigned>(batch.tokens),
                    static_cast<unsigned>((shape.num_heads + kWarps - 1) / kWarps));
    launch(attention_kernel, grid, dim3(kWarps * 32), 0, stream, qkv, batch, shape,
           static_cast<const bf16*>(kv.keys), static_cast<const bf16*>(kv.values),
           1.0F / std::sqrt(static_cast<float>(shape.head_dim)), target);
  }
  if (out.scales != nullptr)
    quantize_activations(target, batch.tokens, out.cols, out.pow2, reinterpret_cast<std::uint8_t*>(out.data),
                         out.scales, stream);
}

}  // namespace octavo::cuda
