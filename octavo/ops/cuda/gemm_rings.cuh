// The copying side of the GEMM: rings of shared memory that weights, tokens and scales stream through, and
// the warps that fill them.
#pragma once

#include "octavo/ops/cuda/gemm_task.h"
#include "octavo/ops/cuda/hopper.cuh"
#include "octavo/quant/cuda/device.h"

namespace octavo::cuda {

constexpr int kStepBytes = 128;  // of a row
constexpr int kMaxStages = 48;
constexpr int kBand = 8;  // groups of token tiles that take turns over the weights, so that both come from L2

// A block of threads in its cluster: the row-th of those that share tokens, the token-th of those that share
// weights.
struct ClusterPlace {
  int row = 0;
  int token = 0;

  __device__ explicit ClusterPlace(const GemmTask& task) {
    if (task.row_cluster * task.token_cluster == 1) return;
    const int rank = static_cast<int>(rank_in_cluster());
    row = rank % task.row_cluster;
    token = rank / task.row_cluster;
  }
};

// Which tile comes next: the token tiles of a band side by side, then the next rows.
struct TileOrder {
  const GemmTask& task;
  ClusterPlace place;

  template <typename Visit>  // (row tile, token tile)
  __device__ void for_each(const Visit& visit) const {
    const int cluster = task.row_cluster * task.token_cluster;
    const int items = task.row_groups * task.token_groups;
    for (int item = static_cast<int>(blockIdx.x) / cluster; item < items;
         item += static_cast<int>(gridDim.x) / cluster) {
      const int band = item / (kBand * task.row_groups);
      const int width = min(kBand, task.token_groups - band * kBand);
      const int inside = item - band * kBand * task.row_groups;
      visit(inside / width * task.row_cluster + place.row,
            (band * kBand + inside % width) * task.token_cluster + place.token);
    }
  }
};

// The place of a token's scale in a stage: a thread of the multiplying warps reads those of its columns, four
// at a time (two where there are only eight columns).
template <int kTokens>
__device__ inline int scale_place(int token) {
  if constexpr (kTokens == 8) return token;
  return token / 16 * 16 + token % 8 / 2 * 4 + token / 8 % 2 * 2 + token % 2;
}

// Shared memory, all as shared addresses: stages, and for each stage a barrier that says "full" and one for
// "empty".
template <int kTokens>
struct Rings {
  static constexpr std::uint32_t kTokenBytes = kTokens * kStepBytes;
  // The tokens' scales come for many steps at a time, so that what a token's come in is whole lines of
  // memory.
  static constexpr int kScaleSteps = scale_steps(kTokens);
  static constexpr std::uint32_t kScaleBytes = kTokens * 4 * kScaleSteps;

  std::uint32_t weight_bytes;
  std::uint32_t weights, tokens, scales;
  std::uint32_t weight_full, weight_empty, token_full, token_empty, scale_full, scale_empty;

  __device__ Rings(const GemmTask& task, void* shared) {
    weight_bytes = static_cast<std::uint32_t>(task.rows) * kStepBytes;
    weights = (shared_address(shared) + 1023) / 1024 * 1024;
    tokens = weights + weight_bytes * task.weight_stages;
    scales = tokens + kTokenBytes * task.token_stages;
    weight_full = scales + kScaleBytes * kScaleStages;
    weight_empty = weight_full + 8 * kMaxStages;
    token_full = weight_empty + 8 * kMaxStages;
    token_empty = token_full + 8 * kMaxStages;
    scale_full = token_empty + 8 * kMaxStages;
    scale_empty = scale_full + 8 * kScaleStages;
  }

  // By one thread. `readers`: warps that multiply; `scale_lanes`: threads that copy scales.
  __device__ void init(const GemmTask& task, int readers, int scale_lanes) const {
    for (int s = 0; s < task.weight_stages; ++s) {
      init_barrier(weight_full + 8 * s, 1);
      init_barrier(weight_empty + 8 * s, readers * task.token_cluster);
    }
    for (int s = 0; s < task.token_stages; ++s) {
      init_barrier(token_full + 8 * s, 1);
      init_barrier(token_empty + 8 * s, readers * task.row_cluster);
    }
    for (int s = 0; s < kScaleStages && scale_lanes > 0; ++s) {
      init_barrier(scale_full + 8 * s, scale_lanes);
      init_barrier(scale_empty + 8 * s, readers);
    }
    publish_barriers();
  }

  // A box of `rows` rows into a stage: this block's share of them, to all blocks that `mask` names.
  __device__ static void copy_share(std::uint32_t stage, const CUtensorMap& map, int column, int row,
                                    int rows, int share, int sharers, std::uint16_t mask, std::uint32_t full,
                                    std::uint64_t policy) {
    const int own = rows / sharers;
    const std::uint32_t to = stage + static_cast<std::uint32_t>(share * own) * kStepBytes;
    if (sharers == 1)
      copy_box(to, map, column, row, full, policy);
    else
      copy_box_to_cluster(to, map, column, row + share * own, full, mask, policy);
  }

  // By a whole warp, which does not wait for the kernel ahead.
  template <int kColumns>
  __device__ void stream_weights(const GemmTask& task, ClusterPlace place, int lane) const {
    if (lane == 0) {
      prefetch_map(task.weight_map);
      const std::uint64_t policy = task.token_groups == 1 ? evict_first() : evict_normal();
      std::uint16_t mask = 0;
      for (int t = 0; t < task.token_cluster; ++t)
        mask |= static_cast<std::uint16_t>(1U << (t * task.row_cluster + place.row));
      RingPlace at;
      TileOrder{task, place}.for_each([&](int row_tile, int) {
        for (int step = 0; step < task.steps; ++step, at.advance(task.weight_stages)) {
          const std::uint32_t full = weight_full + 8 * at.stage;
          wait(weight_empty + 8 * at.stage, at.parity ^ 1);
          arrive_expecting(full, weight_bytes);
          copy_share(weights + at.stage * weight_bytes, task.weight_map, step * kColumns,
                     row_tile * task.rows, task.rows, place.token, task.token_cluster, mask, full, policy);
        }
      });
    }
    __syncwarp();
    // While the last of these are on their way: the beginning of the next layer's rows.
    for (std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * 32 + lane; row < task.next_rows;
         row += static_cast<std::int64_t>(gridDim.x) * 32)
      prefetch_to_l2(task.next_weight + row * task.next_stride, task.next_bytes);
  }

  // By one thread.
  template <int kColumns>
  __device__ void stream_tokens(const GemmTask& task, ClusterPlace place) const {
    const auto mask =
        static_cast<std::uint16_t>(((1U << task.row_cluster) - 1) << (place.token * task.row_cluster));
    const std::uint64_t policy = evict_normal();
    RingPlace at;
    TileOrder{task, place}.for_each([&](int, int token_tile) {
      for (int step = 0; step < task.steps; ++step, at.advance(task.token_stages)) {
        const std::uint32_t full = token_full + 8 * at.stage;
        wait(token_empty + 8 * at.stage, at.parity ^ 1);
        arrive_expecting(full, kTokenBytes);
        copy_share(tokens + at.stage * kTokenBytes, task.token_map, step * kColumns, token_tile * kTokens,
                   kTokens, place.row, task.row_cluster, mask, full, policy);
      }
    });
  }

  // By kLanes threads, of which this is the `first`-th. The scales are another kernel's result of a moment
  // ago: from L2.
  template <int kLanes>
  __device__ void stream_scales(const GemmTask& task, ClusterPlace place, int first) const {
    RingPlace at;
    const bool whole = task.steps % 4 == 0 && reinterpret_cast<std::uintptr_t>(task.token_scales) % 16 == 0;
    TileOrder{task, place}.for_each([&](int, int token_tile) {
      for (int begin = 0; begin < task.steps; begin += kScaleSteps, at.advance(kScaleStages)) {
        wait(scale_empty + 8 * at.stage, at.parity ^ 1);
        auto* const stage = static_cast<float*>(__cvta_shared_to_generic(scales + at.stage * kScaleBytes));
        const int count = min(kScaleSteps, task.steps - begin);
#pragma unroll
        for (int t = first; t < kTokens; t += kLanes) {
          const std::int64_t token = token_tile * kTokens + t;
          if (token >= task.tokens) continue;  // its result is dropped
          const float* const from = task.token_scales + token * task.steps + begin;
          float* const to = stage + scale_place<kTokens>(t);
          if (!whole) {
            for (int i = 0; i < count; ++i) to[i * kTokens] = __ldcg(from + i);
            continue;
          }
          for (int i = 0; i < count;
               i += 16) {  // a few loads at a time: registers are the multiplying warps'
            float4 held[4];
#pragma unroll
            for (int j = 0; j < 4; ++j)
              if (i + j * 4 < count) held[j] = __ldcg(reinterpret_cast<const float4*>(from + i) + j);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              if (i + j * 4 >= count) break;
              float* const four = to + (i + j * 4) * kTokens;
              four[0] = held[j].x;
              four[kTokens] = held[j].y;
              four[2 * kTokens] = held[j].z;
              four[3 * kTokens] = held[j].w;
            }
          }
        }
        arrive(scale_full + 8 * at.stage);
      }
    });
  }
};

}  // namespace octavo::cuda
