// The GEMM of linear layers, warp-specialized and persistent. In a block of threads
//   - one warp streams weights into a ring of shared memory, and does not wait for the kernel ahead: the
//     weights of this kernel travel while that one ends (programmatic dependent launch);
//   - one warp waits for the kernel ahead, then streams the tokens;
//   - for FP8, one warp brings the tokens' scales;
//   - 1, 2 or 4 warpgroups multiply: weights on the 64-row side of wgmma, tokens on the other. For FP8 the
//     tensor cores sum one block of 128 columns; then its sum, times both scales, is added to the result in
//     FP32.
#pragma once

#include "octavo/ops/cuda/gemm_rings.cuh"
#include "octavo/quant/cuda/vector_io.cuh"

namespace octavo::cuda {

struct E4M3 {
  static constexpr bool kScaled = true;
  static constexpr int kColumns = 128;  // of a step
  template <int kTokens>
  __device__ static void multiply(float (&d)[kTokens / 2], std::uint64_t a, std::uint64_t b, bool add) {
    wgmma_e4m3<kTokens>(d, a, b, add);
  }
};
struct BF16 {
  static constexpr bool kScaled = false;
  static constexpr int kColumns = 64;
  template <int kTokens>
  __device__ static void multiply(float (&d)[kTokens / 2], std::uint64_t a, std::uint64_t b, bool add) {
    wgmma_bf16<kTokens>(d, a, b, add);
  }
};

template <typename Element, int kTokens, int kGroups, int kPerGroup>
struct GemmShape {
  static constexpr int kGroupThreads = 128;
  static constexpr int kThreads = (kGroups + 1) * kGroupThreads;
  static constexpr int kSums = kTokens / 2;  // a thread's share of a 64-row tile
  static constexpr int kScaleLanes = Element::kScaled ? 32 : 0;
  static constexpr int kSpan = narrow_steps(kTokens, kGroups);
  // The block's registers, dealt out anew once the roles are known.
  static constexpr int kMultiplyRegisters = kGroups == 4 ? 104 : 224;
  static constexpr int kCopyRegisters = kGroups == 4 ? 64 : 56;
  static_assert(kPerGroup == 1 || !Element::kScaled);
  static_assert(kGroups == 1 || has_registers(kGroups, kMultiplyRegisters, kCopyRegisters));
};

// sums += block sums · scales of their token and of their weight rows.
template <int kTokens>
__device__ inline void promote(float (&sums)[kTokens / 2], const float (&block)[kTokens / 2],
                               const float* scales, float weight_scale, int quad_lane) {
  const auto add = [&](int j, float first, float second) {
    first = __fmul_rn(first, weight_scale);
    second = __fmul_rn(second, weight_scale);
    sums[j * 4] = __fmaf_rn(block[j * 4], first, sums[j * 4]);
    sums[j * 4 + 1] = __fmaf_rn(block[j * 4 + 1], second, sums[j * 4 + 1]);
    sums[j * 4 + 2] = __fmaf_rn(block[j * 4 + 2], first, sums[j * 4 + 2]);
    sums[j * 4 + 3] = __fmaf_rn(block[j * 4 + 3], second, sums[j * 4 + 3]);
  };
  if constexpr (kTokens == 8) {
    const float2 s = *reinterpret_cast<const float2*>(scales + quad_lane * 2);
    add(0, s.x, s.y);
  } else {
#pragma unroll
    for (int j = 0; j < kTokens / 8; j += 2) {
      const float4 s = *reinterpret_cast<const float4*>(scales + j * 8 + quad_lane * 4);
      add(j, s.x, s.y);
      add(j + 1, s.z, s.w);
    }
  }
}

// One warp of the multiplying warpgroups: the sums of its sixteen rows of each 64-row tile.
template <typename Element, int kTokens, int kGroups, int kPerGroup>
struct Multiplier {
  using Shape = GemmShape<Element, kTokens, kGroups, kPerGroup>;
  using Sums = float[Shape::kSums];

  const GemmTask& task;
  using TheRings = Rings<kTokens, Shape::kSpan>;
  static constexpr int kSpan = Shape::kSpan;
  using StageSums = Sums[kSpan];

  const TheRings& rings;
  int warp, lane;
  RingPlace weights{}, tokens{}, scales{};  // what is multiplied next
  Sums sums[kPerGroup];
  // Of the rows of a 64-row tile: the first, and whether they are the block's own.
  int row[kPerGroup];
  bool live[kPerGroup];
  // FP8: the rows' scales, of which a lane holds that of one of 32 blocks, and of the next 32.
  const float* row_scales;
  float held_scale;
  float next_scale;

  __device__ void begin_tile(int row_tile) {
#pragma unroll
    for (int t = 0; t < kPerGroup; ++t) {
      const int inside = (warp / 4 * kPerGroup + t) * 64 + warp % 4 * 16;
      row[t] = row_tile * task.rows + inside;
      live[t] = inside < task.rows && row[t] < task.out;
      if constexpr (Element::kScaled) {
        row_scales = task.weight_scales +
                     static_cast<std::int64_t>(live[t] ? task.scale_rows[row[t] / 16] : 0) * task.steps;
        next_scale = lane < task.steps ? row_scales[lane] : 0.0F;
      }
#pragma unroll
      for (int i = 0; i < Shape::kSums; ++i) sums[t][i] = 0;
    }
  }

  // This warp has read a stage of each.
  __device__ void release(const RingPlace& weight, const RingPlace& token) const {
    if (lane != 0) return;
    arrive(rings.weight_empty + 8 * weight.stage);
    arrive(rings.token_empty + 8 * token.stage);
  }
  __device__ void wait_for(const RingPlace& weight, const RingPlace& token) const {
    wait(rings.weight_full + 8 * weight.stage, weight.parity);
    wait(rings.token_full + 8 * token.stage, token.parity);
  }
  __device__ void advance(RingPlace& weight, RingPlace& token) const {
    weight.advance(task.weight_stages);
    token.advance(task.token_stages);
  }
  // Begins d = (add ? d : 0) + tile · tokens of a step of a stage.
  __device__ void multiply(Sums& d, const RingPlace& weight, const RingPlace& token, int step, int tile,
                           bool add) const {
    const std::uint64_t a =
        matrix_descriptor(rings.weights + weight.stage * rings.weight_bytes + step * rings.weight_step +
                          static_cast<std::uint32_t>(warp / 4 * kPerGroup + tile) * (64 * kStepBytes));
    const std::uint64_t b =
        matrix_descriptor(rings.tokens + token.stage * TheRings::kTokenBytes + step * TheRings::kTokenStep);
#pragma unroll
    for (int k = 0; k < 4; ++k) Element::template multiply<kTokens>(d, a + k * 2, b + k * 2, add || k > 0);
  }
  __device__ const float* scales_of(int step) const {
    return rings.scales.stage(scales.stage) + step % TheRings::kScaleSteps * kTokens;
  }

  // bf16: the tensor cores keep the sums.
  __device__ void sum_plain() {
    RingPlace done_weights = weights;
    RingPlace done_tokens = tokens;
    for (int stage = 0; stage < task.stages; ++stage) {
      wait_for(weights, tokens);
#pragma unroll
      for (int t = 0; t < kPerGroup; ++t) pin(sums[t]);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < kSpan; ++i)
#pragma unroll
        for (int t = 0; t < kPerGroup; ++t) multiply(sums[t], weights, tokens, i, t, stage > 0 || i > 0);
      wgmma_commit();
      if (stage > 0) {  // the stage before has been read
        wgmma_wait<1>();
        release(done_weights, done_tokens);
        advance(done_weights, done_tokens);
      }
      advance(weights, tokens);
    }
    wgmma_wait<0>();
#pragma unroll
    for (int t = 0; t < kPerGroup; ++t) pin(sums[t]);
    release(done_weights, done_tokens);
  }

  // FP8: the scales of the steps from `first` on, asked for so early that nothing waits for them.
  __device__ void hold_scales(int first) {
    if (first % TheRings::kScaleSteps == 0) wait(rings.scales.full + 8 * scales.stage, scales.parity);
    if (first % 32 != 0) return;
    held_scale = next_scale;
    if (first + 32 + lane < task.steps) next_scale = row_scales[first + 32 + lane];
  }
  // FP8: begins the block sums of a stage's steps (beyond K they are zero).
  __device__ void begin_stage(StageSums& blocks, const RingPlace& weight, const RingPlace& token) const {
#pragma unroll
    for (int i = 0; i < kSpan; ++i) pin(blocks[i]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSpan; ++i) multiply(blocks[i], weight, token, i, 0, false);
    wgmma_commit();
  }
  // Adds them to the result, in rising order. A stage's scales lie together.
  __device__ void end_stage(StageSums& blocks, int stage) {
    constexpr int kScaleSteps = TheRings::kScaleSteps;
    const int first = stage * kSpan;
#pragma unroll
    for (int i = 0; i < kSpan; ++i) pin(blocks[i]);
    release(weights, tokens);
    advance(weights, tokens);
    const float* const token_scales = scales_of(first);
#pragma unroll
    for (int i = 0; i < kSpan; ++i) {
      const float scale = __shfl_sync(0xffffffffU, held_scale, first % 32 + i);
      if (i == 0 || first + i < task.steps)
        promote<kTokens>(sums[0], blocks[i], token_scales + i * kTokens, scale, lane % 4);
    }
    if ((first + kSpan) % kScaleSteps == 0 || stage == task.stages - 1) {
      arrive_as_warp(rings.scales.empty + 8 * scales.stage, lane);
      scales.advance(kScaleStages);
    }
  }

  // FP8, a stage at a time: the other warpgroups keep the tensor cores busy while this one adds, and a stage
  // is given back as soon as it has been multiplied. Whether the next is there is asked while this one's
  // products are under way: the answer takes as long as a fifth of them.
  __device__ void sum_scaled() {
    StageSums blocks;
    bool ready = false;
    for (int stage = 0; stage < task.stages; ++stage) {
      if (!ready) wait_for(weights, tokens);
      begin_stage(blocks, weights, tokens);
      hold_scales(stage * kSpan);
      RingPlace next_weights = weights;
      RingPlace next_tokens = tokens;
      advance(next_weights, next_tokens);
      ready = stage + 1 < task.stages &&
              is_done_now(rings.weight_full + 8 * next_weights.stage, next_weights.parity) &&
              is_done_now(rings.token_full + 8 * next_tokens.stage, next_tokens.parity);
      wgmma_wait<0>();
      end_stage(blocks, stage);
    }
  }

  // A lane holds two neighbouring tokens of a row (lane / 4, and eight further down); transposed, two
  // neighbouring rows of a token.
  __device__ void store(int token_tile) const {
    const int quad = lane / 4;
#pragma unroll
    for (int t = 0; t < kPerGroup; ++t) {
      if (!live[t]) continue;
      const float low_bias = task.bias == nullptr ? kNoBias : task.bias[row[t] + quad];
      const float high_bias = task.bias == nullptr ? kNoBias : task.bias[row[t] + 8 + quad];
#pragma unroll
      for (int j = 0; j < kTokens / 8; ++j) {
        const float s[4] = {__fadd_rn(sums[t][j * 4], low_bias), __fadd_rn(sums[t][j * 4 + 1], low_bias),
                            __fadd_rn(sums[t][j * 4 + 2], high_bias),
                            __fadd_rn(sums[t][j * 4 + 3], high_bias)};
        if constexpr (!Element::kScaled) {
          if (task.y_f32 != nullptr) {
            const int token = token_tile * kTokens + j * 8 + lane % 4 * 2;
            float* const to = task.y_f32 + token * task.y_stride + row[t] + quad;
            if (token < task.tokens) to[0] = s[0], to[8] = s[2];
            if (token + 1 < task.tokens) to[task.y_stride] = s[1], to[task.y_stride + 8] = s[3];
            continue;
          }
        }
        const std::uint32_t low = transpose8x8(pack_bf16(s[0], s[1]));
        const std::uint32_t high = transpose8x8(pack_bf16(s[2], s[3]));
        const int token = token_tile * kTokens + j * 8 + quad;
        if (token < task.tokens) {
          auto* const to =
              reinterpret_cast<std::uint32_t*>(task.y + token * task.y_stride + row[t] + lane % 4 * 2);
          to[0] = low;
          to[4] = high;
        }
      }
    }
  }
};

template <typename Element, int kTokens, int kGroups, int kPerGroup>
__global__ void __launch_bounds__(GemmShape<Element, kTokens, kGroups, kPerGroup>::kThreads, 1)
    gemm_kernel(const __grid_constant__ GemmTask task) {
  using Shape = GemmShape<Element, kTokens, kGroups, kPerGroup>;
  extern __shared__ std::uint8_t shared[];
  const Rings<kTokens, Shape::kSpan> rings(task, shared);
  // Through a shuffle, so that the compiler knows it to be the same in all lanes and keeps addresses in
  // uniform registers.
  const int warp = __shfl_sync(0xffffffffU, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) rings.init(task, kGroups * 4, Shape::kScaleLanes);
  __syncthreads();

  if (warp >= kGroups * 4) {
    if constexpr (kGroups > 1) give_registers<Shape::kCopyRegisters>();
    const int role = warp - kGroups * 4;
    if (role == 0) {
      if (lane == 0) rings.template stream_weights<Element::kColumns>(task);
    } else if (role == 1) {
      wait_for_previous_kernel();
      if (lane == 0) {
        let_next_kernel_start();
        rings.template stream_tokens<Element::kColumns>(task);
      }
    } else if constexpr (Element::kScaled) {
      const int first = (role - 2) * 32 + lane;
      wait_for_previous_kernel();
      if (first < Shape::kScaleLanes) rings.scales.template stream<Shape::kScaleLanes>(task, first);
    }
  } else {
    if constexpr (kGroups > 1) take_registers<Shape::kMultiplyRegisters>();
    Multiplier<Element, kTokens, kGroups, kPerGroup> multiplier{task, rings, warp, lane};
    TileOrder{task}.for_each([&](int row_tile, int token_tile) {
      multiplier.begin_tile(row_tile);
      if constexpr (!Element::kScaled)
        multiplier.sum_plain();
      else
        multiplier.sum_scaled();
      multiplier.store(token_tile);
    });
  }
}

template <typename Element, int kTokens, int kGroups, int kPerGroup>
void launch_gemm(const GemmTask& task, std::size_t shared_bytes, bool early, cudaStream_t stream) {
  launch_persistent<gemm_kernel<Element, kTokens, kGroups, kPerGroup>,
                    GemmShape<Element, kTokens, kGroups, kPerGroup>::kThreads>(task, shared_bytes, early,
                                                                               stream);
}

}  // namespace octavo::cuda
