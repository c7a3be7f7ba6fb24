// The copying side of fp8_chain.cu: what shared memory holds, and the warps that fill it with weights, tokens
// and scales, link after link.
#pragma once

#include <type_traits>

#include "octavo/ops/cuda/chain_task.h"
#include "octavo/ops/cuda/gemm_rings.cuh"

namespace octavo::cuda {

constexpr int kGroups = 4;
constexpr int kComputeThreads = kGroups * 128;
constexpr int kThreads = kComputeThreads + 128;
constexpr int kReaders = kGroups * 4;  // warps
// See GemmShape of gemm_kernel.cuh.
constexpr int kComputeRegisters = 104;
constexpr int kCopyRegisters = 64;
constexpr int kScaleSteps = 32;  // of a stage of scales
constexpr int kChainScaleStages = 4;
constexpr int kMultipliers = 3;  // warpgroups that multiply a linear tile
// Copies of weights under way at a time: as many as it takes to keep memory busy. More only stand in the way
// of everything else that a multiprocessor reads, and of a release, which waits for them (4 to 6 us a layer).
constexpr int kStagesUnderWay = 3;
constexpr int kGatedRows = 128;

// A ring of kStages, of which the n-th stage since the beginning is asked for.
template <int kStages, std::uint32_t kBytes>
struct Ring {
  static constexpr std::uint32_t kAllBytes = kStages * kBytes;
  static constexpr std::uint32_t kBarrierBytes = kStages * 2 * 8;
  std::uint32_t data, full, empty;  // shared addresses

  // At the beginning of what is left of shared memory.
  __device__ void place(std::uint32_t& data_left, std::uint32_t& barriers_left) {
    data = data_left;
    full = barriers_left;
    empty = full + 8 * kStages;
    data_left += kAllBytes;
    barriers_left += kBarrierBytes;
  }
  __device__ static std::uint32_t parity(std::uint32_t n) { return n / kStages % 2; }
  __device__ std::uint32_t stage(std::uint32_t n) const { return data + n % kStages * kBytes; }
  __device__ std::uint32_t full_of(std::uint32_t n) const { return full + 8 * (n % kStages); }
  __device__ std::uint32_t empty_of(std::uint32_t n) const { return empty + 8 * (n % kStages); }
  __device__ void wait_empty(std::uint32_t n) const { wait(empty_of(n), parity(n) ^ 1); }
  __device__ void wait_full(std::uint32_t n) const { wait(full_of(n), parity(n)); }
  // By a reader that leaves some stages to others: that its own last was full does not mean that the one that
  // had this place before is, and a parity cannot tell "not yet" from "not yet the one before". So it first
  // waits until that one has been read.
  __device__ void wait_full_among_others(std::uint32_t n) const {
    wait_empty(n);
    wait_full(n);
  }
  __device__ void init(std::uint32_t fillers) const {
    for (int s = 0; s < kStages; ++s) {
      init_barrier(full + 8 * s, fillers);
      init_barrier(empty + 8 * s, kReaders);
    }
  }
};

// Shared memory. Of a linear tile, kMultipliers warpgroups multiply every kMultipliers-th stage and leave its
// block sums here for the one that adds them.
template <int kTokens>
struct ChainMemory {
  static constexpr std::uint32_t kTokenStep = kTokens * kStepBytes;
  static constexpr int kWeightStages = chain_weight_stages(kTokens);
  static constexpr int kTokenStages = chain_token_stages(kTokens);
  // A stage's sums: of 32 rows kChainSpan steps, or of 64 rows half as many. A gated tile's results in bf16
  // take the same room.
  static constexpr std::uint32_t kBlockBytes = kChainSpan * 32 * kTokens * sizeof(float);
  using Weights = Ring<kWeightStages, kChainWeightStage>;
  using Tokens = Ring<kTokenStages, kTokenStep * kChainSpan>;
  using Scales = Ring<kChainScaleStages, kTokens * kScaleSteps * sizeof(float)>;
  using Blocks = Ring<kMultipliers, kBlockBytes>;
  static constexpr std::uint32_t kData =
      Weights::kAllBytes + Tokens::kAllBytes + Scales::kAllBytes + Blocks::kAllBytes;
  static constexpr std::uint32_t kBarriers =
      Weights::kBarrierBytes + Tokens::kBarrierBytes + Scales::kBarrierBytes + Blocks::kBarrierBytes;
  static constexpr std::uint32_t kBytes = kData + kBarriers + kReaders * sizeof(float) + 1024;
  static_assert(kBytes <= kMaxSharedBytes && 2 * kGatedRows * kTokens * sizeof(bf16) <= Blocks::kAllBytes);

  Weights weights;
  Tokens tokens;
  Scales scales;
  Blocks blocks;
  float* of_warp;  // [kReaders], of norms

  __device__ explicit ChainMemory(void* shared) {
    std::uint32_t data = (shared_address(shared) + 1023) / 1024 * 1024;
    std::uint32_t barriers = data + kData;
    weights.place(data, barriers);
    tokens.place(data, barriers);
    scales.place(data, barriers);
    blocks.place(data, barriers);
    of_warp = generic<float>(barriers);
  }
  template <typename T>
  __device__ static T* generic(std::uint32_t address) {
    return static_cast<T*>(__cvta_shared_to_generic(address));
  }
  // Every stage is emptied by kReaders arrivals, whoever reads it.
  __device__ void init() const {
    weights.init(1);
    tokens.init(1);
    scales.init(32);
    blocks.init(4);
    publish_barriers();
  }
};

// The token whose norms a block of threads computes, below task.tokens: the last blocks have them, which are
// the ones that may have no tile.
__device__ inline int norm_token() { return static_cast<int>(gridDim.x - 1 - blockIdx.x); }

// The link ahead of the `index`-th is done, everywhere.
__device__ inline void wait_for_link_ahead(const ChainTask& task, int index) {
  if (index > 0)
    wait_for_count(task.state + index - 1, static_cast<std::uint32_t>(task.links[index - 1].parts));
}

// visit(index, link, tile) for every tile of this block; before(index) before the first of a link.
template <typename Before, typename Visit>
__device__ inline void for_each_tile(const ChainTask& task, const Before& before, const Visit& visit) {
  for (int index = 0; index < task.count; ++index) {
    const ChainTask::Link& link = task.links[index];
    if (link.kind == LinkKind::kNorm || static_cast<int>(blockIdx.x) >= link.tiles) continue;
    before(index);
    for (int tile = static_cast<int>(blockIdx.x); tile < link.tiles; tile += static_cast<int>(gridDim.x))
      visit(link, tile);
  }
}

// With kSpan, a link's steps of a stage, as a constant: an address that is computed anew costs a copying
// thread as much as a copy.
template <typename Stream>
__device__ inline void with_span(int span, const Stream& stream) {
  if (span == kChainSpan) return stream(std::integral_constant<int, kChainSpan>());
  if (span == kChainSpan / 2) return stream(std::integral_constant<int, kChainSpan / 2>());
  stream(std::integral_constant<int, 1>());
}

template <int kTokens>
__device__ inline void stream_weights(const ChainTask& task, const ChainMemory<kTokens>& memory) {
  std::uint32_t n = 0;
  for_each_tile(
      task,
      [&](int index) {
        prefetch_map(task.links[index].weight_map);
        // A norm is quicker without copies under way, and where there is no tile right after it, they can
        // wait.
        if (index > 1 && task.links[index - 2].kind == LinkKind::kNorm && norm_token() < task.tokens &&
            static_cast<int>(blockIdx.x) >= task.links[index - 1].tiles) {
          wait_for_previous_kernel();
          wait_for_link_ahead(task, index - 1);
        }
      },
      [&](const ChainTask::Link& link, int tile) {
        const int halves = link.kind == LinkKind::kGated ? 2 : 1;
        const std::uint32_t step_bytes = static_cast<std::uint32_t>(link.box_rows) * kStepBytes;
        const int row = tile * link.box_rows;
        const int half_rows = link.out / 2;
        const int steps = link.steps;
        with_span(link.span, [&](auto span) {
          for (int step = 0; step < steps; step += span())
            for (int half = 0; half < halves; ++half, ++n) {
              const std::uint32_t full = memory.weights.full_of(n);
              const std::uint32_t to = memory.weights.stage(n);
              if (n >= kStagesUnderWay) memory.weights.wait_full(n - kStagesUnderWay);
              memory.weights.wait_empty(n);
              arrive_expecting(full, step_bytes * span());
              if (link.whole) {
                copy_boxes(to, link.weight_map, row + half * half_rows, step, full);
                continue;
              }
#pragma unroll
              for (int i = 0; i < span(); ++i)
                copy_box(to + static_cast<std::uint32_t>(i) * step_bytes, link.weight_map,
                         (step + i) * kStepBytes, row + half * half_rows, full);
            }
        });
      });
}

template <int kTokens>
__device__ inline void stream_tokens(const ChainTask& task, const ChainMemory<kTokens>& memory) {
  using Memory = ChainMemory<kTokens>;
  std::uint32_t n = 0;
  const std::uint32_t step_bytes = static_cast<std::uint32_t>(task.tokens) * kStepBytes;
  for_each_tile(
      task,
      [&](int index) {
        prefetch_map(task.links[index].token_map);
        wait_for_link_ahead(task, index);
        fence_copies();
      },
      [&](const ChainTask::Link& link, int) {
        const int steps = link.steps;
        with_span(link.span, [&](auto span) {
          for (int step = 0; step < steps; step += span(), ++n) {
            const std::uint32_t full = memory.tokens.full_of(n);
            const std::uint32_t to = memory.tokens.stage(n);
            memory.tokens.wait_empty(n);
            if (link.whole) {
              arrive_expecting(full, Memory::kTokenStep * span());
              copy_boxes(to, link.token_map, 0, step, full);
              continue;
            }
            arrive_expecting(full, step_bytes * span());
#pragma unroll
            for (int i = 0; i < span(); ++i)
              copy_box(to + i * Memory::kTokenStep, link.token_map, (step + i) * kStepBytes, 0, full);
          }
        });
      });
}

// The tokens' scales, [step][scale_place(token)], by a warp.
template <int kTokens>
__device__ inline void stream_scales(const ChainTask& task, const ChainMemory<kTokens>& memory, int lane) {
  std::uint32_t n = 0;
  for_each_tile(
      task, [&](int index) { wait_for_link_ahead(task, index); },
      [&](const ChainTask::Link& link, int) {
        for (int first = 0; first < link.steps; first += kScaleSteps, ++n) {
          memory.scales.wait_empty(n);
          float* const to = ChainMemory<kTokens>::template generic<float>(memory.scales.stage(n));
          // A lane takes a step of all tokens: 128 bytes a token.
          if (first + lane < link.steps) {
            float held[kTokens];
#pragma unroll
            for (int t = 0; t < kTokens; ++t)
              if (t < task.tokens) held[t] = __ldcg(link.token_scales + t * link.steps + first + lane);
#pragma unroll
            for (int t = 0; t < kTokens; ++t)
              if (t < task.tokens) to[lane * kTokens + scale_place<kTokens>(t)] = held[t];
          }
          arrive(memory.scales.full_of(n));
        }
      });
}

}  // namespace octavo::cuda
