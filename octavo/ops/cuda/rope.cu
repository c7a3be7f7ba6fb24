// Optional RMSNorm of the heads, rotary embedding, and the write into the paged cache: of any shape, one warp
// a head; of prompts whose attention rotates the queries itself, keys and values only, four lanes a head.
#include "octavo/ops/cuda/attention_kernels.h"
#include "octavo/ops/cuda/kv_layout.cuh"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/cuda/vector_io.cuh"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 4;

struct RopeArguments {
  bf16* qkv;
  const std::int32_t* positions;
  const std::int32_t* slots;
  AttentionShape shape;
  HeadRotation rotation;
  bf16* keys;
  bf16* values;
};

__device__ float to_f32(bf16 v) { return __uint_as_float(std::uint32_t{v.bits} << 16); }
__device__ bf16 from_f32(float v) { return {static_cast<std::uint16_t>(pack_bf16(v, 0.0F))}; }

// Rotates one head in place; `stored` (may be null) gets the result too, in the cache's order.
__device__ void rotate(const RopeArguments& a, bf16* head, const float* norm, std::int64_t position,
                       bf16* stored, int place) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int dim = static_cast<int>(a.shape.head_dim);
  const int half = dim / 2;
  float scale = 1.0F;
  if (norm != nullptr) {
    float squares = 0;
    for (int i = lane; i < dim; i += 32) squares = __fmaf_rn(to_f32(head[i]), to_f32(head[i]), squares);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(0xffffffffU, squares, step);
    scale = __fdiv_rn(1.0F, __fsqrt_rn(__fdiv_rn(squares, static_cast<float>(dim)) + a.rotation.eps));
  }
  const float* const cos = a.rotation.table.cos + position * half;
  const float* const sin = a.rotation.table.sin + position * half;
  const int padded = padded_dim(dim);
  for (int i = lane; i < half; i += 32) {
    float x = to_f32(head[i]);
    float y = to_f32(head[half + i]);
    if (norm != nullptr) {
      x = __fmul_rn(__fmul_rn(x, scale), norm[i]);
      y = __fmul_rn(__fmul_rn(y, scale), norm[half + i]);
    }
    const bf16 low = from_f32(__fsub_rn(__fmul_rn(x, cos[i]), __fmul_rn(y, sin[i])));
    const bf16 high = from_f32(__fadd_rn(__fmul_rn(y, cos[i]), __fmul_rn(x, sin[i])));
    head[i] = low;
    head[half + i] = high;
    if (stored != nullptr) {
      stored[kv_offset(padded, place, i)] = low;
      stored[kv_offset(padded, place, half + i)] = high;
    }
  }
}

// Grid: tokens × groups of kWarps heads, counted through q, k and v.
__global__ void __launch_bounds__(kWarps * 32) rope_kernel(RopeArguments a) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t token = blockIdx.x;
  std::int64_t head = blockIdx.y * kWarps + threadIdx.x / 32;
  bf16* const row = a.qkv + token * a.shape.qkv_cols;
  const std::int64_t position = a.positions[token];
  if (head < a.shape.num_heads) {
    rotate(a, row + a.shape.q_begin + head * a.shape.head_dim, a.rotation.q_norm, position, nullptr, 0);
    return;
  }
  head -= a.shape.num_heads;
  const bool is_key = head < a.shape.num_kv_heads;
  if (!is_key) head -= a.shape.num_kv_heads;
  if (head >= a.shape.num_kv_heads) return;
  const std::int32_t slot = a.slots[token];
  const int dim = static_cast<int>(a.shape.head_dim);
  const int padded = padded_dim(dim);
  const int place = slot & (kPage - 1);
  const std::int64_t at = (slot / kPage * a.shape.num_kv_heads + head) * kPage * padded;
  if (is_key) {
    rotate(a, row + a.shape.k_begin + head * dim, a.rotation.k_norm, position,
           slot < 0 ? nullptr : a.keys + at, place);
    return;
  }
  if (slot < 0) return;
  const bf16* const v = row + a.shape.v_begin + head * dim;
  for (int i = static_cast<int>(threadIdx.x % 32); i < dim; i += 32)
    a.values[at + kv_offset(padded, place, i)] = v[i];
}

// A key's eights of dimensions that one of its four lanes has: 8 (lane % 4 + 4 i) … and those half a head on.
template <int kDim>
struct KeyEights {
  static constexpr int kEights = kDim / 64;
  float low[kEights][8];
  float high[kEights][8];

  __device__ static int first_dim(int i) { return static_cast<int>(threadIdx.x % 4) * 8 + i * 32; }
  __device__ explicit KeyEights(const bf16* head) {
#pragma unroll
    for (int i = 0; i < kEights; ++i) {
      unpack8(*reinterpret_cast<const uint4*>(head + first_dim(i)), low[i]);
      unpack8(*reinterpret_cast<const uint4*>(head + kDim / 2 + first_dim(i)), high[i]);
    }
  }
  // gqa_rope.cuh's inverse_rms(), whose 32 lanes' sums are here eight to a lane.
  __device__ float inverse_rms(float eps) const {
    float squares[8] = {};
#pragma unroll
    for (const auto& half : {&low, &high})
#pragma unroll
      for (int i = 0; i < kEights; ++i)
#pragma unroll
        for (int e = 0; e < 8; ++e) squares[e] = __fmaf_rn((*half)[i][e], (*half)[i][e], squares[e]);
#pragma unroll
    for (float& sum : squares) {
      sum += __shfl_xor_sync(0xffffffffU, sum, 2);
      sum += __shfl_xor_sync(0xffffffffU, sum, 1);
    }
#pragma unroll
    for (int step = 4; step > 0; step /= 2)
#pragma unroll
      for (int e = 0; e < step; ++e) squares[e] += squares[e + step];
    return __fdiv_rn(1.0F, __fsqrt_rn(__fdiv_rn(squares[0], static_cast<float>(kDim)) + eps));
  }
  // gqa_rope.cuh's rotate(); by whole warps.
  __device__ void rotate(const HeadRotation& rotation, std::int64_t position) {
    float cos[kEights][8];
    float sin[kEights][8];
#pragma unroll
    for (int i = 0; i < kEights; ++i) {
      load8(rotation.table.cos + position * (kDim / 2) + first_dim(i), true, 8, cos[i]);
      load8(rotation.table.sin + position * (kDim / 2) + first_dim(i), true, 8, sin[i]);
    }
    if (rotation.k_norm != nullptr) {
      const float scale = inverse_rms(rotation.eps);
      const auto norm = [&](float(&values)[8], int dim) {
        float weights[8];
        load8(rotation.k_norm + dim, true, 8, weights);
#pragma unroll
        for (int e = 0; e < 8; ++e) values[e] = __fmul_rn(__fmul_rn(values[e], scale), weights[e]);
      };
#pragma unroll
      for (int i = 0; i < kEights; ++i) norm(low[i], first_dim(i)), norm(high[i], kDim / 2 + first_dim(i));
    }
#pragma unroll
    for (int i = 0; i < kEights; ++i)
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float x = low[i][e];
        const float y = high[i][e];
        low[i][e] = __fsub_rn(__fmul_rn(x, cos[i][e]), __fmul_rn(y, sin[i][e]));
        high[i][e] = __fadd_rn(__fmul_rn(y, cos[i][e]), __fmul_rn(x, sin[i][e]));
      }
  }
  __device__ void store(bf16* page, int place) const {
#pragma unroll
    for (int i = 0; i < kEights; ++i) {
      *reinterpret_cast<uint4*>(page + kv_offset(kDim, place, first_dim(i))) = pack8(low[i]);
      *reinterpret_cast<uint4*>(page + kv_offset(kDim, place, kDim / 2 + first_dim(i))) = pack8(high[i]);
    }
  }
};

// Grid: four threads for each token and KV head, along one dimension.
template <int kDim>
__global__ void __launch_bounds__(kWarps * 32) store_kernel(RopeArguments a, std::int64_t tokens) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t group = (blockIdx.x * std::int64_t{kWarps * 32} + threadIdx.x) / 4;
  const std::int64_t token = min(group / a.shape.num_kv_heads, tokens - 1);
  const std::int64_t head = group % a.shape.num_kv_heads;
  const bf16* const row = a.qkv + token * a.shape.qkv_cols;
  const bf16* const its_value = row + a.shape.v_begin + head * kDim;
  KeyEights<kDim> key(row + a.shape.k_begin + head * kDim);
  uint4 value[kDim / 32];
#pragma unroll
  for (int i = 0; i < kDim / 32; ++i)
    value[i] = *reinterpret_cast<const uint4*>(its_value + key.first_dim(i));
  key.rotate(a.rotation, a.positions[token]);
  const std::int32_t slot = a.slots[token];
  if (slot < 0 || group >= tokens * a.shape.num_kv_heads) return;
  const std::int64_t page = (slot / kPage * a.shape.num_kv_heads + head) * (kPage * kDim);
  key.store(a.keys + page, slot % kPage);
#pragma unroll
  for (int i = 0; i < kDim / 32; ++i)
    *reinterpret_cast<uint4*>(a.values + page + kv_offset(kDim, slot % kPage, key.first_dim(i))) = value[i];
}

template <int kDim>
void store(const RopeArguments& arguments, std::int64_t tokens, cudaStream_t stream) {
  constexpr std::int64_t kGroups = kWarps * 32 / 4;
  const std::int64_t groups = tokens * arguments.shape.num_kv_heads;
  launch(store_kernel<kDim>, dim3(static_cast<unsigned>((groups + kGroups - 1) / kGroups)), dim3(kWarps * 32),
         0, stream, arguments, tokens);
}

}  // namespace

void rope_and_store(bf16* qkv, const DeviceBatch& batch, const AttentionShape& shape,
                    const HeadRotation& rotation, const KvLayer& kv, cudaStream_t stream) {
  const bool attention_rotates = gqa_attention_takes(shape);
  if (batch.tokens == 0 || (attention_rotates && batch.runs == nullptr)) return;
  const RopeArguments arguments{qkv,
                                batch.positions,
                                batch.slots,
                                shape,
                                rotation,
                                static_cast<bf16*>(kv.keys),
                                static_cast<bf16*>(kv.values)};
  if (attention_rotates)
    return shape.head_dim == 64 ? store<64>(arguments, batch.tokens, stream)
                                : store<128>(arguments, batch.tokens, stream);
  const auto heads = shape.num_heads + 2 * shape.num_kv_heads;
  launch(rope_kernel,
         dim3(static_cast<unsigned>(batch.tokens), static_cast<unsigned>((heads + kWarps - 1) / kWarps)),
         dim3(kWarps * 32), 0, stream, arguments);
}

}  // namespace octavo::cuda
