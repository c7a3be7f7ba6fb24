// The copying side of a chain: what shared memory holds, and the warps that fill it with weights, tokens
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
constexpr int kMultipliers = 3;  // warpgroups that multiply a linear tile
// Copies of weights under way at a time: as many as it takes to keep memory busy. More only stand in the way
// of everything else that a multiprocessor reads, and of a release, which waits for them.
constexpr int kStagesUnderWay = 4;
// And while nothing is multiplied, when every read that stands behind them counts.
constexpr int kStagesBetween = 2;
constexpr int kGatedRows = 128;

template <typename T>
__device__ inline T* from_shared(std::uint32_t address) {
  return static_cast<T*>(__cvta_shared_to_generic(address));
}

// With kSpan, a link's steps of a stage, as a constant: an address that is computed anew costs a copying
// thread as much as a copy.
template <typename Stream>
__device__ inline void with_span(int span, const Stream& stream) {
  if (span == kChainSpan) return stream(std::integral_constant<int, kChainSpan>());
  if (span == kChainSpan / 2) return stream(std::integral_constant<int, kChainSpan / 2>());
  stream(std::integral_constant<int, 1>());
}

// Whether a block multiplies: from when a link's tokens begin until it has been computed. A hint between its
// warps.
struct Multiplying {
  static constexpr std::uint32_t kBytes = 16;  // so that what lies behind stays aligned
  std::uint32_t at;                            // shared address

  __device__ void place(std::uint32_t& left) {
    at = left;
    left += kBytes;
  }
  __device__ void set(bool to) const {
    asm volatile("st.volatile.shared.u32 [%0], %1;" ::"r"(at), "r"(static_cast<std::uint32_t>(to))
                 : "memory");
  }
  __device__ bool get() const {
    std::uint32_t got;
    asm volatile("ld.volatile.shared.u32 %0, [%1];" : "=r"(got) : "r"(at) : "memory");
    return got != 0;
  }
  // By one thread, when a tile has been computed: with the block's last, the link is.
  __device__ void end_tile(const ChainTask::Link& of, int tile) const {
    if (tile + static_cast<int>(gridDim.x) >= of.tiles) set(false);
  }
};

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
  __device__ void init(std::uint32_t fillers, std::uint32_t readers) const {
    for (int s = 0; s < kStages; ++s) {
      init_barrier(full + 8 * s, fillers);
      init_barrier(empty + 8 * s, readers);
    }
  }
};

// Shared memory. Of a linear tile, kMultipliers warpgroups multiply every kMultipliers-th stage and leave its
// block sums here for the one that adds them.
template <int kTokens>
struct ChainMemory {
  static constexpr int kWeightStages = kTokens == 8 ? 11 : 9;
  static constexpr int kTokenStages = kTokens == 8 ? 8 : 6;
  static constexpr std::uint32_t kTokenStep = kTokens * kStepBytes;
  // A stage's sums: of 32 rows kChainSpan steps, or of 64 rows half as many. A gated tile's results in bf16
  // take the same room.
  static constexpr std::uint32_t kBlockBytes = kChainSpan * 32 * kTokens * sizeof(float);
  using Weights = Ring<kWeightStages, kChainWeightStage>;
  using Tokens = Ring<kTokenStages, kTokenStep * kChainSpan>;
  using Scales = Ring<4, kTokens * kScaleSteps * sizeof(float)>;
  using Blocks = Ring<kMultipliers, kBlockBytes>;
  static constexpr std::uint32_t kData =
      Weights::kAllBytes + Tokens::kAllBytes + Scales::kAllBytes + Blocks::kAllBytes;
  static constexpr std::uint32_t kBarriers =
      Weights::kBarrierBytes + Tokens::kBarrierBytes + Scales::kBarrierBytes + Blocks::kBarrierBytes;
  static constexpr std::uint32_t kBytes =
      kData + kBarriers + Multiplying::kBytes + kReaders * sizeof(float) + 1024;
  static_assert(kBytes <= kMaxSharedBytes && 2 * kGatedRows * kTokens * sizeof(bf16) <= Blocks::kAllBytes);

  Weights weights;
  Tokens tokens;
  Scales scales;
  Blocks blocks;
  Multiplying multiplying;
  float* of_warp;  // [kReaders], of norms

  __device__ explicit ChainMemory(void* shared) {
    std::uint32_t data = (shared_address(shared) + 1023) / 1024 * 1024;
    std::uint32_t barriers = data + kData;
    weights.place(data, barriers);
    tokens.place(data, barriers);
    scales.place(data, barriers);
    blocks.place(data, barriers);
    multiplying.place(barriers);
    of_warp = from_shared<float>(barriers);
  }
  // Every stage is emptied by the arrivals of kReaders warps, whoever reads it.
  __device__ void init() const {
    weights.init(1, kReaders);
    tokens.init(1, kReaders);
    scales.init(32, kReaders * kArrivalsOfWarp);
    blocks.init(4 * kArrivalsOfWarp, kReaders * kArrivalsOfWarp);
    multiplying.set(false);
    publish_barriers();
  }
  // A tile's tokens, from the n-th stage on.
  __device__ void bring_tokens(const ChainTask::Link& link, std::uint32_t& n) const {
    const int steps = link.steps;
    with_span(link.span, [&](auto span) {
      for (int step = 0; step < steps; step += span(), ++n) {
        const std::uint32_t full = tokens.full_of(n);
        const std::uint32_t to = tokens.stage(n);
        tokens.wait_empty(n);
        arrive_expecting(full, kTokenStep * span());
        if (link.whole) {
          copy_boxes(to, link.token_map, 0, step, full);
          continue;
        }
#pragma unroll
        for (int i = 0; i < span(); ++i)
          copy_box(to + i * kTokenStep, link.token_map, (step + i) * kStepBytes, 0, full);
      }
    });
  }
  // A stage of scales, [step][scale_place(token)], from the step `first` on; a lane takes a step of all
  // tokens, 128 bytes a token.
  __device__ static void bring_scales(const ChainTask& task, const ChainTask::Link& link, std::uint32_t stage,
                                      int first, int lane) {
    if (first + lane >= link.steps) return;
    const float* const from = link.token_scales + first + lane;
    float* const to = from_shared<float>(stage) + lane * kTokens;
    float held[kTokens];
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
      if (t < task.tokens) held[t] = __ldcg(from + t * link.scale_pitch);
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
      if (t < task.tokens) to[scale_place<kTokens>(t)] = held[t];
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

template <typename Memory>
__device__ inline void stream_weights(const ChainTask& task, const Memory& memory) {
  const ReadOnce once;
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
        // Of a gated tile a stage has half of gate's rows of a step, then as many of up's.
        const bool gated = link.kind == LinkKind::kGated;
        const int halves = gated ? 2 : 1;
        const std::uint32_t step_bytes = static_cast<std::uint32_t>(link.box_rows) * kStepBytes;
        const int row = tile * link.box_rows * halves;
        const int up = link.out / 2;
        const int steps = link.steps;
        with_span(link.span, [&](auto span) {
          const std::uint32_t box_bytes = step_bytes * span();
          for (int step = 0; step < steps; step += span())
            for (int half = 0; half < halves; ++half, ++n) {
              const std::uint32_t full = memory.weights.full_of(n);
              const std::uint32_t to = memory.weights.stage(n);
              const std::uint32_t under_way = memory.multiplying.get() ? kStagesUnderWay : kStagesBetween;
              if (n >= under_way) memory.weights.wait_full(n - under_way);
              memory.weights.wait_empty(n);
              arrive_expecting(full, box_bytes * static_cast<std::uint32_t>(halves));
              const auto copy = [&](std::uint32_t to_box, int first_row) {
                if (link.whole) return copy_boxes(to_box, link.weight_map, first_row, step, full, once);
#pragma unroll
                for (int i = 0; i < span(); ++i)
                  copy_box(to_box + static_cast<std::uint32_t>(i) * step_bytes, link.weight_map,
                           (step + i) * kStepBytes, first_row, full, once);
              };
              copy(to, row + half * link.box_rows);
              if (gated) copy(to + step_bytes, row + half * link.box_rows + up);
            }
        });
      });
}

template <typename Memory>
__device__ inline void stream_tokens(const ChainTask& task, const Memory& memory) {
  std::uint32_t n = 0;
  for_each_tile(
      task,
      [&](int index) {
        prefetch_map(task.links[index].token_map);
        wait_for_link_ahead(task, index);
        fence_copies();
        memory.multiplying.set(true);
      },
      [&](const ChainTask::Link& link, int) { memory.bring_tokens(link, n); });
}

// The tokens' scales, by the `lane`-th thread of a warp.
template <typename Memory>
__device__ inline void stream_scales(const ChainTask& task, const Memory& memory, int lane) {
  std::uint32_t n = 0;
  for_each_tile(
      task, [&](int index) { wait_for_link_ahead(task, index); },
      [&](const ChainTask::Link& link, int) {
        for (int first = 0; first < link.steps; first += kScaleSteps, ++n) {
          memory.scales.wait_empty(n);
          memory.bring_scales(task, link, memory.scales.stage(n), first, lane);
          arrive(memory.scales.full_of(n));
        }
      });
}

}  // namespace octavo::cuda
