// A head's norm and rotation in the registers of the matrix instruction's fragments: queries, and decodes'
// keys.
#pragma once

#include "octavo/ops/cuda/gqa_page.cuh"
#include "octavo/quant/cuda/vector_io.cuh"

namespace octavo::cuda::gqa {

// A head in four lanes: lane c of them has dimensions 16 k + 2 c + {0, 1} and the same + 8.
template <int kDim>
struct HeadFragment {
  std::uint32_t x[kDim / 16][2] = {};

  __device__ static int first_dim() { return static_cast<int>(threadIdx.x % 4) * 2; }
  __device__ void load(const bf16* head) {
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        x[k][i] = *reinterpret_cast<const std::uint32_t*>(head + first_dim() + k * 16 + i * 8);
  }
};

// The angles of one position for the same lanes.
template <int kDim>
struct Angles {
  float2 cos[kDim / 32][2];
  float2 sin[kDim / 32][2];

  __device__ Angles(const RopeTable& table, int position) {
    const std::int64_t row =
        static_cast<std::int64_t>(position) * (kDim / 2) + HeadFragment<kDim>::first_dim();
#pragma unroll
    for (int k = 0; k < kDim / 32; ++k)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        cos[k][i] = *reinterpret_cast<const float2*>(table.cos + row + k * 16 + i * 8);
        sin[k][i] = *reinterpret_cast<const float2*>(table.sin + row + k * 16 + i * 8);
      }
  }
};

// 1 / RMS. Its sum is that of 32 lanes (rope.cu's, for other shapes), of which lane l adds up dimensions l,
// l + 32, …, and which are then added in pairs 16, 8, 4, 2 and 1 apart.
template <int kDim>
__device__ float inverse_rms(const HeadFragment<kDim>& head, float eps) {
  float squares[2][2][2] = {};  // of dimensions 16 a + 8 b + 2 c + d (mod 32)
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k)
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const float low = low_bf16(head.x[k][b]);
      const float high = high_bf16(head.x[k][b]);
      squares[k % 2][b][0] = __fmaf_rn(low, low, squares[k % 2][b][0]);
      squares[k % 2][b][1] = __fmaf_rn(high, high, squares[k % 2][b][1]);
    }
  float sum[2];
#pragma unroll
  for (int d = 0; d < 2; ++d) {
    sum[d] = (squares[0][0][d] + squares[1][0][d]) + (squares[0][1][d] + squares[1][1][d]);
    sum[d] += __shfl_xor_sync(kAll, sum[d], 2);
    sum[d] += __shfl_xor_sync(kAll, sum[d], 1);
  }
  return __fdiv_rn(1.0F, __fsqrt_rn(__fdiv_rn(sum[0] + sum[1], static_cast<float>(kDim)) + eps));
}

// By whole warps. `norm` may be null.
template <int kDim>
__device__ void rotate(HeadFragment<kDim>& head, const float* norm, float eps, const Angles<kDim>& angles) {
  const float scale = norm == nullptr ? 1.0F : inverse_rms(head, eps);
#pragma unroll
  for (int k = 0; k < kDim / 32; ++k)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      std::uint32_t& low = head.x[k][i];
      std::uint32_t& high = head.x[k + kDim / 32][i];
      float2 x = {low_bf16(low), high_bf16(low)};
      float2 y = {low_bf16(high), high_bf16(high)};
      if (norm != nullptr) {
        const float* const weights = norm + HeadFragment<kDim>::first_dim() + k * 16 + i * 8;
        const float2 of_x = *reinterpret_cast<const float2*>(weights);
        const float2 of_y = *reinterpret_cast<const float2*>(weights + kDim / 2);
        x = {__fmul_rn(__fmul_rn(x.x, scale), of_x.x), __fmul_rn(__fmul_rn(x.y, scale), of_x.y)};
        y = {__fmul_rn(__fmul_rn(y.x, scale), of_y.x), __fmul_rn(__fmul_rn(y.y, scale), of_y.y)};
      }
      const float2 cos = angles.cos[k][i];
      const float2 sin = angles.sin[k][i];
      low = pack_bf16(__fsub_rn(__fmul_rn(x.x, cos.x), __fmul_rn(y.x, sin.x)),
                      __fsub_rn(__fmul_rn(x.y, cos.y), __fmul_rn(y.y, sin.y)));
      high = pack_bf16(__fadd_rn(__fmul_rn(y.x, cos.x), __fmul_rn(x.x, sin.x)),
                       __fadd_rn(__fmul_rn(y.y, cos.y), __fmul_rn(x.y, sin.y)));
    }
}

// A key or value of which all eight groups of four lanes have the whole head: each group writes its
// sixteenth, where kv_layout.cuh says, to a page in any memory.
template <int kDim>
struct HeadPart {
  std::uint32_t x[2] = {};

  HeadPart() = default;
  __device__ explicit HeadPart(const HeadFragment<kDim>& head) {
    const unsigned one = 1U << group();  // an index that is not constant would put `head` into memory
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k)
#pragma unroll
      for (int i = 0; i < 2; ++i) x[i] |= head.x[k][i] * (one >> k & 1U);
  }
  __device__ void store(bf16* page, int place) const {
    if (group() >= kDim / 16) return;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      *reinterpret_cast<std::uint32_t*>(
          page + kv_offset(kDim, place, group() * 16 + i * 8 + HeadFragment<kDim>::first_dim())) = x[i];
  }
  __device__ static int group() { return static_cast<int>(threadIdx.x % 32 / 4); }
};

}  // namespace octavo::cuda::gqa
