// The computing side of a chain. Three of four warpgroups multiply a linear tile's stages in turns, weights
// on the 64-row side of wgmma, and the fourth adds up what they leave, so that blocks are added in rising
// order though several are multiplied at a time. A gated tile's 256 rows are shared out among the four, each
// of which adds up its own.
#include "octavo/ops/cuda/chain_kernel.cuh"
#include "octavo/ops/cuda/silu.cuh"

namespace octavo::cuda {
namespace {

// A warp of the computing warpgroups.
template <int kTokens>
struct ChainComputer {
  static constexpr int kSums = kTokens / 2;  // a thread's share of 64 rows
  using Sums = float[kSums];
  using Scales = float[kTokens / 4];  // of this thread's tokens
  using Memory = ChainMemory<kTokens>;

  const ChainTask& task;
  const Memory& memory;
  int warp, lane;
  std::uint32_t weights = 0, tokens = 0, scales = 0, blocks = 0;  // stages of the rings so far

  // Of a tile this warp adds up sixteen rows, for all tokens or (kHalf) for eight of sixteen: the first row,
  // its place in the tile, whether they are in the matrix, and the first token.
  int row, inside;
  bool live;
  int first_token;
  // Of the weights' scales a lane holds that of one of 32 blocks, and of the next 32.
  const float* row_scales;
  float held_scale, next_scale;
  // Where this thread reads the tokens' scales of the 32 steps: a shared address, because nvcc 13.0 does not
  // come to an end where a pointer made of one lives through a loop.
  std::uint32_t token_scales;
  Sums sums;

  __device__ int group() const { return warp / 4; }

  template <bool kHalf>
  __device__ void begin_tile(const ChainTask::Link& link, int tile) {
    inside = (kHalf ? warp % 2 : warp % 4) * 16;
    first_token = kHalf ? warp % 4 / 2 * 8 : 0;
    if (link.kind == LinkKind::kGated) {
      const int up = group() % 2;
      inside += group() / 2 * 64;
      row = tile * kGatedRows + inside + up * (link.out / 2);
      inside += up * kGatedRows;
    } else {
      row = tile * link.box_rows + inside;
    }
    live = inside < link.rows && row < link.out;
    row_scales =
        link.weight_scales + static_cast<std::int64_t>(live ? link.scale_rows[row / 16] : 0) * link.steps;
    next_scale = lane < link.steps ? row_scales[lane] : 0.0F;
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = 0;
  }
  // The scales of the `steps - first`, at most 32, steps from `first` on; those of the weights were asked for
  // so early that nothing waits for them.
  __device__ void begin_scales(int first, int steps) {
    held_scale = next_scale;
    if (first + kScaleSteps + lane < steps) next_scale = row_scales[first + kScaleSteps + lane];
    memory.scales.wait_full_among_others(scales);
    // (scale_place() puts token 8's two floats behind token 0's: first_token is also how many bytes.)
    token_scales = memory.scales.stage(scales) +
                   static_cast<std::uint32_t>(lane % 4 * (kTokens == 8 ? 8 : 16) + first_token);
  }
  // As one of `readers` warps.
  __device__ void end_scales(std::uint32_t readers) {
    arrive_as_warp(memory.scales.empty_of(scales), lane, kReaders / readers);
    ++scales;
  }
  // The scales of the step-th of the 32, times their rows'.
  template <bool kHalf>
  __device__ void read_scales(Scales& to, int step) const {
    const float weight = __shfl_sync(0xffffffffU, held_scale, step);
    const float* const from =
        from_shared<float>(token_scales + static_cast<std::uint32_t>(step * kTokens) * 4);
    if constexpr (kTokens == 8 || kHalf) {
      const float2 s = *reinterpret_cast<const float2*>(from);
      to[0] = __fmul_rn(s.x, weight), to[1] = __fmul_rn(s.y, weight);
    } else {
#pragma unroll
      for (int j = 0; j < kTokens / 4; j += 4) {
        const float4 s = *reinterpret_cast<const float4*>(from + j * 4);
        to[j] = __fmul_rn(s.x, weight), to[j + 1] = __fmul_rn(s.y, weight);
        to[j + 2] = __fmul_rn(s.z, weight), to[j + 3] = __fmul_rn(s.w, weight);
      }
    }
  }
  // sums += a step's block sums · scales.
  template <bool kHalf>
  __device__ void promote(const Sums& block, const Scales& scale) {
#pragma unroll
    for (int j = 0; j < (kHalf ? 1 : kTokens / 8); ++j) {
      sums[j * 4] = __fmaf_rn(block[j * 4], scale[j * 2], sums[j * 4]);
      sums[j * 4 + 1] = __fmaf_rn(block[j * 4 + 1], scale[j * 2 + 1], sums[j * 4 + 1]);
      sums[j * 4 + 2] = __fmaf_rn(block[j * 4 + 2], scale[j * 2], sums[j * 4 + 2]);
      sums[j * 4 + 3] = __fmaf_rn(block[j * 4 + 3], scale[j * 2 + 1], sums[j * 4 + 3]);
    }
  }

  // Where thread `thread` of kThreadsApart leaves a step's sums of a stage, four of them every kThreadsApart.
  template <int kThreadsApart>
  __device__ float4* block_sums(std::uint32_t n, int step, int thread) const {
    return from_shared<float4>(memory.blocks.stage(n)) + step * (kSums / 4) * kThreadsApart + thread;
  }
  // Waits for the n-th stage's operands and says, once they have been read, that they have.
  __device__ void wait_for_operands(std::uint32_t w, std::uint32_t x) const {
    memory.weights.wait_full_among_others(w);
    memory.tokens.wait_full_among_others(x);
  }
  __device__ void release_operands(std::uint32_t w, std::uint32_t w_times, std::uint32_t x,
                                   std::uint32_t x_times) const {
    if (lane != 0) return;
    arrive(memory.weights.empty_of(w), w_times);
    arrive(memory.tokens.empty_of(x), x_times);
  }

  // Multiplies this warpgroup's stages of a linear tile. Where a step has 32 rows (kPaired), two steps are
  // the 64 rows that an instruction takes: their tokens side by side, it multiplies each with its own, and
  // with the other's, which is dropped.
  template <int kSpan, bool kPaired>
  __device__ void multiply_stages(int steps, int rows) {
    constexpr int kInstructions = kPaired ? kSpan / 2 : kSpan;
    constexpr int kColumns = kPaired ? 2 * kTokens : kTokens;
    constexpr int kThreadsApart = kPaired ? 64 : 128;
    const int stages = (steps + kSpan - 1) / kSpan;
    const std::uint32_t rows_apart = static_cast<std::uint32_t>(kPaired ? 64 : rows) * kStepBytes;
    const int upper = kPaired ? warp % 4 / 2 : 0;
    const int thread = (kPaired ? warp % 2 : warp % 4) * 32 + lane;
    for (int stage = 0; stage < stages; ++stage, ++blocks) {
      if (blocks % kMultipliers != static_cast<std::uint32_t>(group())) continue;
      const std::uint32_t w = weights + static_cast<std::uint32_t>(stage);
      const std::uint32_t x = tokens + static_cast<std::uint32_t>(stage);
      wait_for_operands(w, x);
      float d[kInstructions][kColumns / 2];
      begin_products<kInstructions, kColumns>(d, memory.weights.stage(w), rows_apart, memory.tokens.stage(x),
                                              Memory::kTokenStep * (kPaired ? 2 : 1));
      memory.blocks.wait_empty(blocks);
      end_products(d);
      release_operands(w, 4, x, 4);
#pragma unroll
      for (int i = 0; i < kInstructions; ++i) {
        float4* const to = block_sums<kThreadsApart>(blocks, kPaired ? 2 * i + upper : i, thread);
#pragma unroll
        for (int j = 0; j < kSums; j += 4)
          to[j / 4 * kThreadsApart] = {upper ? d[i][kColumns / 2 - kSums + j] : d[i][j],
                                       upper ? d[i][kColumns / 2 - kSums + j + 1] : d[i][j + 1],
                                       upper ? d[i][kColumns / 2 - kSums + j + 2] : d[i][j + 2],
                                       upper ? d[i][kColumns / 2 - kSums + j + 3] : d[i][j + 3]};
      }
      arrive_as_warp(memory.blocks.full_of(blocks), lane);
    }
    weights += static_cast<std::uint32_t>(stages);
    tokens += static_cast<std::uint32_t>(stages);
  }
  // Adds up a linear tile's block sums, in rising order. One warpgroup does what three multiply, so all that
  // can be is ready before.
  template <int kSpan, bool kPaired, bool kHalf>
  __device__ void add_stages(int steps) {
    constexpr int kThreadsApart = kPaired ? 64 : 128;
    constexpr int kOwn = kHalf ? kSums / 2 : kSums;
    const std::uint32_t stages = static_cast<std::uint32_t>((steps + kSpan - 1) / kSpan);
    const int thread = (kHalf ? warp % 2 : warp % 4) * 32 + lane + first_token / 8 * kThreadsApart;
    for (int first = 0; first < steps; first += kScaleSteps) {
      begin_scales(first, steps);
      const int count = min(kScaleSteps, steps - first);
      for (int step = 0; step < count; step += kSpan, ++blocks) {
        Scales scale[kSpan];
#pragma unroll
        for (int i = 0; i < kSpan; ++i) read_scales<kHalf>(scale[i], step + i);
        memory.blocks.wait_full(blocks);
        if (live) {
          Sums block[kSpan];
#pragma unroll
          for (int i = 0; i < kSpan; ++i) {
            const float4* const from = block_sums<kThreadsApart>(blocks, i, thread);
#pragma unroll
            for (int j = 0; j < kOwn; j += 4) {
              const float4 four = from[j / 4 * kThreadsApart];
              block[i][j] = four.x, block[i][j + 1] = four.y, block[i][j + 2] = four.z,
              block[i][j + 3] = four.w;
            }
          }
#pragma unroll
          for (int i = 0; i < kSpan; ++i)
            if (step + i < count) promote<kHalf>(block[i], scale[i]);
        }
        arrive_as_warp(memory.blocks.empty_of(blocks), lane, kReaders / 4);
      }
      end_scales(4);
    }
    weights += stages;
    tokens += stages;
  }
  // A gated tile, of which each warpgroup has 64 rows of gate or of up, which is half of a stage.
  __device__ void sum_gated(int steps) {
    const std::uint32_t half = static_cast<std::uint32_t>(group() % 2) * (64 * kStepBytes);
    for (int first = 0; first < steps; first += kScaleSteps) {
      const int count = min(kScaleSteps, steps - first);
      for (int step = 0; step < count; ++step) {
        const std::uint32_t w = weights + static_cast<std::uint32_t>(2 * (first + step) + group() / 2);
        const std::uint32_t x = tokens + static_cast<std::uint32_t>(first + step);
        wait_for_operands(w, x);
        float d[1][kSums];
        begin_products<1, kTokens>(d, memory.weights.stage(w) + half, 0, memory.tokens.stage(x), 0);
        if (step == 0) begin_scales(first, steps);
        Scales scale;
        read_scales<false>(scale, step);
        end_products(d);
        release_operands(w, 2, x, 1);
        promote<false>(d[0], scale);
      }
      end_scales(kReaders);
    }
    weights += static_cast<std::uint32_t>(2 * steps);
    tokens += static_cast<std::uint32_t>(steps);
  }

  // To `y`, whose tokens are `stride` apart and whose first row is `first_row`. A lane holds two neighbouring
  // tokens of a row (lane / 4, and eight further down); transposed, two neighbouring rows of a token.
  template <bool kHalf>
  __device__ void store(const ChainTask::Link& link, bf16* y, std::int64_t stride, int first_row) const {
    if (!live) return;
    const int quad = lane / 4;
    const float low_bias = link.bias == nullptr ? kNoBias : link.bias[row + quad];
    const float high_bias = link.bias == nullptr ? kNoBias : link.bias[row + 8 + quad];
#pragma unroll
    for (int j = 0; j < (kHalf ? 1 : kTokens / 8); ++j) {
      const std::uint32_t low =
          transpose8x8(pack_bf16(__fadd_rn(sums[j * 4], low_bias), __fadd_rn(sums[j * 4 + 1], low_bias)));
      const std::uint32_t high = transpose8x8(
          pack_bf16(__fadd_rn(sums[j * 4 + 2], high_bias), __fadd_rn(sums[j * 4 + 3], high_bias)));
      const int token = first_token + j * 8 + quad;
      if (token >= task.tokens) continue;
      auto* const to = reinterpret_cast<std::uint32_t*>(y + token * stride + first_row + lane % 4 * 2);
      put(to, low);
      put(to + 4, high);
    }
  }
  // silu(gate) · up of the tile, quantized: 128 columns of the result, which are one group of each token.
  __device__ void store_gated(const ChainTask::Link& link, int tile) const {
    bf16* const results = from_shared<bf16>(memory.blocks.data);
    store<false>(link, results, 2 * kGatedRows, inside);
    sync_computing();
    const int token = (warp * 32 + lane) / kLanesPerGroup;
    if (token >= kTokens) return;
    const int column = lane % kLanesPerGroup * 8;
    float g[8];
    float u[8];
    load8(results + token * 2 * kGatedRows + column, true, 8, g);
    load8(results + token * 2 * kGatedRows + kGatedRows + column, true, 8, u);
#pragma unroll
    for (int i = 0; i < 8; ++i) g[i] = silu(g[i]) * u[i];
    unpack8(pack8(g), g);
    const Scale scale = group_scale(g, link.pow2);
    if (token >= task.tokens) return;
    const std::int64_t cols = link.out / 2;
    *reinterpret_cast<uint2*>(link.gated + token * cols + tile * kGatedRows + column) =
        e4m3x8(g, scale.multiplier);
    if (column == 0) link.gated_scales[token * scale_pitch(cols) + tile] = scale.scale;
  }

  __device__ static void sync_adders() { asm volatile("bar.sync 2, 128;" ::: "memory"); }

  __device__ void linear(int index, const ChainTask::Link& link) {
    link.span == kChainSpan ? linear<kChainSpan, true>(index, link)
                            : linear<kChainSpan / 2, false>(index, link);
  }
  template <int kSpan, bool kPaired>
  __device__ void linear(int index, const ChainTask::Link& link) {
    for (int tile = static_cast<int>(blockIdx.x); tile < link.tiles; tile += static_cast<int>(gridDim.x)) {
      if (group() < kMultipliers) {
        multiply_stages<kSpan, kPaired>(link.steps, link.box_rows);
        scales += static_cast<std::uint32_t>((link.steps + kScaleSteps - 1) / kScaleSteps);
        continue;
      }
      constexpr bool kHalf = kPaired && kTokens == 16;  // 32 rows leave two of four warps free
      begin_tile<kHalf>(link, tile);
      add_stages<kSpan, kPaired, kHalf>(link.steps);
      if (warp % 4 == 0 && lane == 0) memory.multiplying.end_tile(link, tile);
      store<kHalf>(link, link.y, link.y_stride, row);
      sync_adders();
      if (warp % 4 == 0 && lane == 0) say_done(task, index);
    }
  }
  __device__ void gated(int index, const ChainTask::Link& link) {
    for (int tile = static_cast<int>(blockIdx.x); tile < link.tiles; tile += static_cast<int>(gridDim.x)) {
      begin_tile<false>(link, tile);
      sum_gated(link.steps);
      if (warp == 0 && lane == 0) memory.multiplying.end_tile(link, tile);
      store_gated(link, tile);
      sync_computing();
      if (warp == 0 && lane == 0) say_done(task, index);
    }
  }
};

}  // namespace

void launch_chain(const ChainTask& task, int blocks, bool early, cudaStream_t stream) {
  task.token_rows == 8 ? launch_chain_of<ChainComputer<8>>(task, blocks, early, stream)
                       : launch_chain_of<ChainComputer<16>>(task, blocks, early, stream);
}

}  // namespace octavo::cuda
