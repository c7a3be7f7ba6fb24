// One page of grouped-query attention on the tensor cores, as a warp computes it for single tokens, and what
// that has in common with prompts (gqa_prompt_attention.cu), so that a token gets the same bits from both.
#pragma once

#include <cmath>

#include "octavo/ops/cuda/attention_kernels.h"
#include "octavo/ops/cuda/hopper.cuh"
#include "octavo/ops/cuda/kv_layout.cuh"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/cuda/group_quantizer.cuh"

namespace octavo::cuda::gqa {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kSplitPages = static_cast<int>(kSplitPositions) / kPage;
static_assert(kSplitPages % kWarps == 0);  // a warp's pages are evenly spaced across splits
constexpr int kHeads = 8;                  // columns of a tile; unused ones compute on zeros
constexpr unsigned kAll = 0xffffffffU;

// What a kernel works on.
struct Layer {
  const bf16* qkv;
  DeviceBatch batch;
  AttentionShape shape;
  bf16* keys;
  bf16* values;
  float scale_log2;  // log2(e) / √head_dim
  void* out;
  float* scales;
  bool pow2;

  Layer(const bf16* qkv_rows, const DeviceBatch& of, const AttentionShape& its_shape, const KvLayer& kv,
        const Activation& to)
      : qkv(qkv_rows),
        batch(of),
        shape(its_shape),
        keys(static_cast<bf16*>(kv.keys)),
        values(static_cast<bf16*>(kv.values)),
        scale_log2(1.44269504F / std::sqrt(static_cast<float>(its_shape.head_dim))),
        out(to.data),
        scales(to.scales),
        pow2(to.pow2) {}

  // A token's row of the result, of num_heads · head_dim columns, in E4M3 or bf16.
  __device__ ActivationRow row(std::int64_t token, int cols) const {
    return ActivationRow::of(out, scales, token, cols, pow2);
  }
};

__device__ inline void load_matrices(std::uint32_t (&a)[4], const bf16* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared_address(p))
               : "memory");
}
__device__ inline void load_transposed(std::uint32_t (&a)[4], const bf16* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared_address(p))
               : "memory");
}
// c [16, 8] += a [16, 16] b [16, 8]
__device__ inline void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The end of a row of O, whose zeros may have either sign until then.
__device__ inline float quotient(float o, float sum) { return __fdividef(__fadd_rn(o, 0.0F), sum); }

constexpr int kWarpPages = kSplitPages / kWarps;  // at most, of a split

// What a warp makes of its pages of one split: of columns (lane % 4) · 2 + {0, 1}, and for O of dimensions
// 16 t + lane / 4 + {0, 8}.
template <int kDim>
struct WarpState {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};  // of this lane's positions only, until the end
  float o[kDim / 16][4] = {};
};

// Scores [16, 8] of each of kCount pages; of a page's positions `valid` count, the others get -∞. query(k):
// the fragment of columns 16 k … of Q. Several at a time are quicker than one after the other.
template <int kDim, int kCount, typename Query>
__device__ void score_pages(float (*p)[4], const Query& query, const bf16* const (&keys)[kCount],
                            const int (&valid)[kCount]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int page = 0; page < kCount; ++page)
#pragma unroll
    for (float& x : p[page]) x = 0;
  const int matrix = lane / 8;
  const int key_row = lane % 8 + matrix % 2 * 8;
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    const uint2 q = query(k);
#pragma unroll
    for (int page = 0; page < kCount; ++page) {
      std::uint32_t a[4];
      load_matrices(a, keys[page] + kv_offset(kDim, key_row, (k * 2 + matrix / 2) * 8));
      multiply(p[page], a, q.x, q.y);
    }
  }
#pragma unroll
  for (int page = 0; page < kCount; ++page)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (lane / 4 + i / 2 * 8 >= valid[page]) p[page][i] = -INFINITY;
}

// Scores of all of a warp's pages of a split (-∞ beyond the last) become weights, of which the matrix
// instruction takes `weights`: 2^(scale_log2 · score - max).
template <int kDim>
__device__ void weigh(WarpState<kDim>& state, float (&p)[kWarpPages][4], float scale_log2,
                      uint2 (&weights)[kWarpPages]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float largest = -INFINITY;
#pragma unroll
    for (const auto& page : p) largest = fmaxf(largest, fmaxf(page[h], page[h + 2]));
#pragma unroll
    for (int step = 4; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, step));
    state.max[h] = __fmul_rn(largest, scale_log2);
#pragma unroll
    for (auto& page : p) {
      page[h] = exp2_fast(__fmaf_rn(page[h], scale_log2, -state.max[h]));
      page[h + 2] = exp2_fast(__fmaf_rn(page[h + 2], scale_log2, -state.max[h]));
      state.sum[h] = __fadd_rn(state.sum[h], __fadd_rn(page[h], page[h + 2]));
    }
  }
#pragma unroll
  for (int j = 0; j < kWarpPages; ++j)
    weights[j] = {transpose8x8(pack_bf16(p[j][0], p[j][1])), transpose8x8(pack_bf16(p[j][2], p[j][3]))};
}

// O += V P of a page, of whose positions `valid` count; the others may hold anything.
template <int kDim>
__device__ void add_page(WarpState<kDim>& state, bf16* values, int valid, uint2 weights) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (valid < kPage) {  // what was never written may be NaN, and 0 · NaN is NaN
    for (int i = valid * 8 + lane; i < kPage * 8; i += 32)
#pragma unroll
      for (int half = 0; half < kDim / 64; ++half)
        reinterpret_cast<uint4*>(values)[half * kPage * 8 + i] = uint4{};
    __syncwarp();
  }
  const int matrix = lane / 8;
  const int value_row = lane % 8 + matrix / 2 * 8;
#pragma unroll
  for (int t = 0; t < kDim / 16; ++t) {
    std::uint32_t a[4];
    load_transposed(a, values + kv_offset(kDim, value_row, (t * 2 + matrix % 2) * 8));
    multiply(state.o[t], a, weights.x, weights.y);
  }
}

// Eight dimensions of one head: the running result of the splits so far.
struct Running {
  float max = -INFINITY;
  float sum = 0;
  float o[8] = {};
  __device__ void fold(const Running& next) {
    const float now = fmaxf(max, next.max);
    const float keep = exp2_fast(max - now);
    const float take = exp2_fast(next.max - now);
    max = now;
    sum = __fmaf_rn(sum, keep, __fmul_rn(next.sum, take));
#pragma unroll
    for (int i = 0; i < 8; ++i) o[i] = __fmaf_rn(o[i], keep, __fmul_rn(next.o[i], take));
  }
};

// The warps' splits of one tile of columns, as they leave them to be folded.
template <int kDim>
struct Splits {
  alignas(16) float o[kWarps][kHeads][kDim + 4];  // 4: columns two apart lie eight banks apart
  float max[kWarps][kHeads];
  float sum[kWarps][kHeads];

  // By a whole warp.
  __device__ void publish(WarpState<kDim>& state) {
    const int warp = static_cast<int>(threadIdx.x / 32);
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) state.sum[h] += __shfl_xor_sync(kAll, state.sum[h], step);
      const int head = lane % 4 * 2 + h;
      if (lane < 4) {
        max[warp][head] = state.max[h];
        sum[warp][head] = state.sum[h];
      }
#pragma unroll
      for (int t = 0; t < kDim / 16; ++t) {
        o[warp][head][t * 16 + lane / 4] = state.o[t][h];
        o[warp][head][t * 16 + lane / 4 + 8] = state.o[t][h + 2];
      }
    }
  }
  __device__ Running of_warp(int warp, int head, int dim) const {
    const auto* const eight = reinterpret_cast<const float4*>(&o[warp][head][dim]);
    const float4 low = eight[0];
    const float4 high = eight[1];
    return {max[warp][head], sum[warp][head], {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
  }
  // A split of `pages` pages: of the warps that had one, in rising order.
  __device__ Running fold(int head, int dim, int pages) const {
    Running split;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const Running next = of_warp(w, head, dim);
      if (w < pages) split.fold(next);
    }
    return split;
  }
  // Puts a folded split where its first warp's part was. By whole warps, which have a head's parts whole.
  __device__ void keep(const Running& split, int head, int dim) {
    __syncwarp();  // all have read maximum and sum
    auto* const eight = reinterpret_cast<float4*>(&o[0][head][dim]);
    eight[0] = {split.o[0], split.o[1], split.o[2], split.o[3]};
    eight[1] = {split.o[4], split.o[5], split.o[6], split.o[7]};
    max[0][head] = split.max;
    sum[0][head] = split.sum;
  }
};

}  // namespace octavo::cuda::gqa
