// The copying side of the FP8 GEMM for many tokens: how a tile is dealt out to the warps of a block, and what
// its shared memory holds.
#pragma once

#include "octavo/ops/cuda/gemm_rings.cuh"
#include "octavo/ops/cuda/gpc_seats.cuh"

namespace octavo::cuda {

// What a warpgroup multiplies in one go, a unit, is 64 tokens by kOfUnit weight rows. It has kUnits of them:
// of different tokens and the same rows or, kIsGated, of the same tokens, first gate's rows and then up's.
// The warpgroups of a block stand kAlongTokens by kAlongRows.
template <int kOfUnit, int kAlongTokens, int kAlongRows, int kUnits, bool kIsGated>
struct TallShape {
  static constexpr int kRows = kOfUnit;
  static constexpr int kTokenGroups = kAlongTokens;
  static constexpr int kRowGroups = kAlongRows;
  static constexpr int kPerGroup = kUnits;
  static constexpr bool kGated = kIsGated;
  static constexpr int kGroups = kTokenGroups * kRowGroups;
  static constexpr int kThreads = (kGroups + 1) * 128;
  static constexpr int kGroupTokens = kGated ? 64 : 64 * kPerGroup;  // of a warpgroup
  static constexpr int kTokens = kGroupTokens * kTokenGroups;        // of a tile
  static constexpr int kTileRows = kRows * kRowGroups * (kGated ? 2 : 1);
  static constexpr int kSpan = tall_steps(kRows);  // steps of a stage
  static constexpr std::uint32_t kTokenStep = kTokens * kStepBytes;
  static constexpr std::uint32_t kWeightStep = kTileRows * kStepBytes;
  static constexpr std::uint32_t kStageBytes = (kTokenStep + kWeightStep) * kSpan;
  static constexpr int kBoxRows = result_box(kRows);
  static constexpr std::uint32_t kBoxBytes = 64 * kBoxRows * 2;
  // Of a warpgroup. Gated, they go straight to memory.
  static constexpr std::uint32_t kResultBytes = kGated ? 0 : kPerGroup * 64 * kRows * 2;
  static constexpr int kRowScales = kRows / 16;  // of a unit: rows 16 i … share the i-th
  // For so few tokens that weights are what is waited for: what matters is little code.
  static constexpr bool kShort = kPerGroup == 1 && kSpan > 1;
  // Gated, of 64 tokens: so many stages of weights are under way at a time, though the ring is deeper: enough
  // to keep memory busy. With more, multiprocessors whose neighbours are idle take a larger share and are
  // done long before the others, and whatever else is read or written meanwhile has to queue. 0: as many as
  // the ring has.
  static constexpr int kUnderWay = kGated && kTokens == 64 ? 2 : 0;
  static_assert(kUnderWay <= kMinStages);  // a ring of fewer would wait for a stage that it has not begun
  // The first unit's results are stored while the last products of the second are under way.
  static constexpr bool kStoresEarly = kPerGroup == 2 && !kGated;
  // See GemmShape of gemm_kernel.cuh.
  static constexpr int kMultiplyRegisters = 240;
  static constexpr int kCopyRegisters = 24;
  static_assert(kGroups == 1 || has_registers(kGroups, kMultiplyRegisters, kCopyRegisters));
  static_assert(!kGated || (kRowGroups == 1 && kPerGroup == 2 && kRows == kBlock));
  static_assert(kGroups <= 2 && kPerGroup <= 2 && (kPerGroup == 1 || kSpan == 1) &&
                kScaleBoxSteps % kSpan == 0);
};

// The tokens' scales in shared memory: boxes of kScaleBoxSteps steps of a tile's kTokens tokens, a token's
// side by side, so that what a warp reads of a step is in different banks. A box is part of the first stage
// that needs it, and its place is free when the stages that did have been read (GemmPlan::stages_for), so it
// has no barriers of its own.
template <int kTokens>
struct TallScales {
  static constexpr std::uint32_t kBoxBytes = kTokens * kScaleBoxSteps * 4;
  std::uint32_t data;  // a shared address

  // The n-th box since the kernel's beginning.
  __device__ std::uint32_t box(std::uint32_t n) const { return data + n % kScaleBoxes * kBoxBytes; }
  // Of the tile's first token. Steps are counted in whole boxes, a tile's from a box's first on. Not by
  // box(): in some builds ptxas then multiplied scales between a unit's products
  // (docs/results/gpu-gemm.md).
  __device__ const float* of_step(std::uint32_t step) const {
    return static_cast<const float*>(__cvta_shared_to_generic(data)) +
           step / kScaleBoxSteps % kScaleBoxes * (kBoxBytes / 4) + step % kScaleBoxSteps;
  }
};

// Shared memory, all as shared addresses. A stage holds the tokens of its steps, then the weights; a
// warpgroup's results wait to be stored in boxes of 64 tokens, those of its first 64 tokens first.
//
// With kUnderWay a stage's weights have a barrier of their own (`full`), and its tokens too (token_full).
template <typename Shape>
struct TallRing {
  static constexpr bool kApart = Shape::kUnderWay > 0;
  std::uint32_t stages, results, full, token_full, empty, seat_at;
  using Scales = TallScales<Shape::kTokens>;
  Scales scales;

  __device__ TallRing(const GemmTask& task, void* shared) {
    stages = (shared_address(shared) + 1023) / 1024 * 1024;
    results = stages + Shape::kStageBytes * task.weight_stages;
    scales.data = results + Shape::kResultBytes * Shape::kGroups;
    full = scales.data + Scales::kBoxBytes * kScaleBoxes;
    token_full = kApart ? full + 8 * kMaxStages : full;
    empty = token_full + 8 * kMaxStages;
    seat_at = empty + 8 * kMaxStages;
    static_assert((3 * kMaxStages + 1) * 8 <= kBarrierBytes);
  }
  __device__ std::uint32_t tokens(std::uint32_t stage) const { return stages + stage * Shape::kStageBytes; }
  __device__ std::uint32_t weights(std::uint32_t stage) const {
    return tokens(stage) + Shape::kTokenStep * Shape::kSpan;
  }

  // By one thread. A stage is full when both its parts are there, and empty when every warp that multiplies,
  // of every block of the cluster, has read its own: any of them may be given a part of it by any other.
  __device__ void init(const GemmTask& task) const {
    for (int s = 0; s < task.weight_stages; ++s) {
      init_barrier(full + 8 * s, kApart ? 1 : 2);
      if (kApart) init_barrier(token_full + 8 * s, 1);
      init_barrier(empty + 8 * s, static_cast<std::uint32_t>(Shape::kGroups * 4 * task.cluster));
    }
    publish_barriers();
  }

  // Where the thread that takes it leaves it for the others.
  __device__ int& seat() const { return *static_cast<int*>(__cvta_shared_to_generic(seat_at)); }

  // Whether what a warp reads of the stage is there, asked once or waited for; `of` is its barrier of `full`.
  __device__ bool is_there(std::uint32_t of, std::uint32_t parity) const {
    const bool weights = is_done_now(of, parity);
    return kApart ? is_done_now(of + (token_full - full), parity) && weights : weights;
  }
  __device__ void wait_until_there(std::uint32_t of, std::uint32_t parity) const {
    wait(of, parity);
    if constexpr (kApart) wait(of + (token_full - full), parity);
  }

  // fill(stage, first step, row tile, token tile) for every stage of every tile; by one thread.
  template <typename Fill>
  __device__ void for_each_stage(const TileOrder& order, const Fill& fill) const {
    const GemmTask& task = order.task;
    RingPlace at;
    order.for_each([&](int row_tile, int token_tile) {
      for (int stage = 0; stage < task.stages; ++stage, at.advance(task.weight_stages)) {
        wait(empty + 8 * at.stage, at.parity ^ 1);
        fill(at.stage, stage * Shape::kSpan, row_tile, token_tile);
      }
    });
  }
  // Does not wait for the kernel ahead. Gated blocks of a cluster share weights: each brings its part, gate's
  // or up's, to all.
  __device__ void stream_weights(const TileOrder& order) const {
    const GemmTask& task = order.task;
    prefetch_map(task.weight_map);
    if constexpr (!Shape::kGated) prefetch_map(task.y_map);  // its first use is when all else is done
    const auto rank = static_cast<int>(rank_in_cluster());
    const WeightCopy copy_own(task);
    RingPlace landing;  // the stage kUnderWay before
    int begun = 0;
    for_each_stage(order, [&](std::uint32_t stage, int step, int row_tile, int) {
      if (kApart && begun++ >= Shape::kUnderWay) {
        wait(full + 8 * landing.stage, landing.parity);
        landing.advance(task.weight_stages);
      }
      const std::uint32_t barrier = full + 8 * stage;
      arrive_expecting(barrier, Shape::kWeightStep * Shape::kSpan);
#pragma unroll
      for (int i = 0; i < Shape::kSpan; ++i) {
        const std::uint32_t to = weights(stage) + i * Shape::kWeightStep;
        const int column = (step + i) * kStepBytes;
        const auto to_own = [&](std::uint32_t part, int of) { copy_own(part, column, of, barrier); };
        if constexpr (Shape::kGated) {
          const auto bring = [&](int part, const auto& copy) {
            copy(to + static_cast<std::uint32_t>(part * Shape::kRows) * kStepBytes,
                 row_tile * Shape::kRows + part * (task.out / 2));
          };
          if (task.cluster == 1)
            bring(0, to_own), bring(1, to_own);
          else
            bring(rank, [&](std::uint32_t part, int of) {
              copy_box_to_cluster(part, task.weight_map, column, of, barrier, everyone(task));
            });
        } else {
          to_own(to, row_tile * Shape::kTileRows);
        }
      }
    });
  }
  // And their scales.
  __device__ void stream_tokens(const TileOrder& order) const {
    const GemmTask& task = order.task;
    const auto bytes = static_cast<std::uint32_t>(task.token_box) * kStepBytes * Shape::kSpan;
    const auto scale_bytes = static_cast<std::uint32_t>(task.token_box * kScaleBoxSteps) * 4;
    std::uint32_t boxes = 0;
    for_each_stage(order, [&](std::uint32_t stage, int step, int, int token_tile) {
      const std::uint32_t barrier = token_full + 8 * stage;
      const bool with_scales = step % kScaleBoxSteps == 0;
      arrive_expecting(barrier, with_scales ? bytes + scale_bytes : bytes);
      if (with_scales)
        copy_box(scales.box(boxes++), task.scale_map, step, token_tile * Shape::kTokens, barrier);
#pragma unroll
      for (int i = 0; i < Shape::kSpan; ++i)
        copy_box(tokens(stage) + i * Shape::kTokenStep, task.token_map, (step + i) * kStepBytes,
                 token_tile * Shape::kTokens, barrier);
    });
  }
  __device__ static std::uint16_t everyone(const GemmTask& task) {
    return static_cast<std::uint16_t>((1U << task.cluster) - 1);
  }
};

}  // namespace octavo::cuda
