// The copying side of the GEMM: rings of shared memory that weights, tokens and scales stream through, and
// the warps that fill them.
#pragma once

#include <algorithm>

#include "octavo/ops/cuda/gemm_launch.h"
#include "octavo/ops/cuda/hopper.cuh"
#include "octavo/quant/cuda/device.h"

namespace octavo::cuda {

// How a warp tells the blocks that bring parts of its stages, its own or (kClustered) all of its cluster's,
// that it has read one: a lane each. Where it says so, and which lanes do, is found out once: this is said
// between a stage's products and the next's.
template <bool kClustered>
struct StageRelease {
  std::uint32_t here, there;  // the first stage's barrier
  bool own, other;

  __device__ StageRelease(std::uint32_t empty, int lane, int blocks) : here(empty) {
    const auto rank = static_cast<std::uint32_t>(min(lane, blocks - 1));
    own = kClustered ? lane < blocks && rank == rank_in_cluster() : lane == 0;
    if constexpr (kClustered) {
      there = address_in_block(empty, rank);
      other = lane < blocks && rank != rank_in_cluster();
    }
  }
  __device__ void operator()(std::uint32_t stage) const {
    if (own) arrive(here + 8 * stage);
    if constexpr (kClustered) {
      if (other) arrive_there(there + 8 * stage);
    }
  }
};

// Which tile comes next: visit_tile(). The blocks of a cluster take neighbouring token tiles.
struct TileOrder {
  const GemmTask& task;
  // A cluster's items: the first, then every step()-th below count().
  const int first;

  __device__ explicit TileOrder(const GemmTask& task)
      : TileOrder(task, static_cast<int>(blockIdx.x) / task.cluster) {}
  __device__ TileOrder(const GemmTask& task, int first) : task(task), first(first) {}
  __device__ int step() const { return static_cast<int>(gridDim.x) / task.cluster; }
  __device__ int count() const { return task.row_items * task.token_items; }

  template <typename Visit>  // (row tile, token tile)
  __device__ void tile(int item, const Visit& visit) const {
    visit_tile(item, task.row_items, task.token_items, task.row_band, [&](int row, int token) {
      visit(row, token * task.cluster + static_cast<int>(rank_in_cluster()));
    });
  }
  template <typename Visit>
  __device__ void for_each(const Visit& visit) const {
    for (int item = first; item < count(); item += step()) tile(item, visit);
  }
};

// Copies a box of weights as copy_box() does: with the hint, where one block only reads each.
struct WeightCopy {
  const GemmTask& task;
  const bool reads_once;
  const ReadOnce once{};

  __device__ explicit WeightCopy(const GemmTask& task) : task(task), reads_once(task.token_items == 1) {}
  __device__ void operator()(std::uint32_t to, int column, int row, std::uint32_t barrier) const {
    if (reads_once)
      copy_box(to, task.weight_map, column, row, barrier, once);
    else
      copy_box(to, task.weight_map, column, row, barrier);
  }
};

// The place of a token's scale in a stage: a thread of the multiplying warps reads those of its columns, four
// at a time (two where there are only eight columns).
template <int kTokens>
__device__ inline int scale_place(int token) {
  if constexpr (kTokens == 8) return token;
  return token / 16 * 16 + token % 8 / 2 * 4 + token / 8 % 2 * 2 + token % 2;
}

// The tokens' scales in shared memory: kScaleStages stages of kSteps steps of a tile's kTokens tokens, in the
// order that scale_place() gives. They come for many steps at a time, so that what a token's come in is whole
// lines of memory.
template <int kTokens, int kSteps>
struct ScaleRing {
  static constexpr std::uint32_t kBytes = kTokens * kSteps * 4;  // of a stage
  std::uint32_t data, full, empty;                               // shared addresses

  __device__ float* stage(std::uint32_t index) const {
    return static_cast<float*>(__cvta_shared_to_generic(data + index * kBytes));
  }

  // By kLanes threads, of which this is the `first`-th. The scales are another kernel's result of a moment
  // ago: from L2.
  template <int kLanes>
  __device__ void stream(const GemmTask& task, int first) const {
    const std::int64_t pitch = scale_pitch(std::int64_t{task.steps} * kBlock);
    RingPlace at;
    TileOrder{task}.for_each([&](int, int token_tile) {
      for (int begin = 0; begin < task.steps; begin += kSteps, at.advance(kScaleStages)) {
        const int count = min(kSteps, task.steps - begin);
        wait(empty + 8 * at.stage, at.parity ^ 1);
#pragma unroll
        for (int t = first; t < kTokens; t += kLanes) {
          const std::int64_t token = token_tile * kTokens + t;
          if (token >= task.tokens) continue;  // its result is dropped
          const float* const from = task.token_scales + token * pitch + begin;
          float* const to = stage(at.stage) + scale_place<kTokens>(t);
          constexpr int kAtOnce = 16;  // registers are the multiplying warps'
          for (int i = 0; i < count; i += kAtOnce) {
            float4 held[kAtOnce / 4];
#pragma unroll
            for (int j = 0; j < kAtOnce / 4; ++j)
              if (i + j * 4 < count) held[j] = __ldcg(reinterpret_cast<const float4*>(from + i) + j);
#pragma unroll
            for (int j = 0; j < kAtOnce / 4; ++j) {
              if (i + j * 4 >= count) break;
              float* const four = to + (i + j * 4) * kTokens;
              four[0] = held[j].x;
              four[kTokens] = held[j].y;
              four[2 * kTokens] = held[j].z;
              four[3 * kTokens] = held[j].w;
            }
          }
        }
        arrive(full + 8 * at.stage);
      }
    });
  }
};

// Shared memory, all as shared addresses: stages, and for each stage a barrier that says "full" and one for
// "empty".
template <int kTokens, int kSpan>  // kSpan: steps of a stage
struct Rings {
  static constexpr std::uint32_t kTokenStep = kTokens * kStepBytes;
  static constexpr std::uint32_t kTokenBytes = kTokenStep * kSpan;
  static constexpr int kScaleSteps = scale_steps(kTokens);
  using Scales = ScaleRing<kTokens, kScaleSteps>;

  std::uint32_t weight_step;   // bytes of a step
  std::uint32_t weight_bytes;  // of a stage
  std::uint32_t weights, tokens;
  std::uint32_t weight_full, weight_empty, token_full, token_empty;
  Scales scales;

  __device__ Rings(const GemmTask& task, void* shared) {
    weight_step = static_cast<std::uint32_t>(task.rows) * kStepBytes;
    weight_bytes = weight_step * kSpan;
    weights = (shared_address(shared) + 1023) / 1024 * 1024;
    tokens = weights + weight_bytes * task.weight_stages;
    scales.data = tokens + kTokenBytes * task.token_stages;
    weight_full = scales.data + Scales::kBytes * kScaleStages;
    weight_empty = weight_full + 8 * kMaxStages;
    token_full = weight_empty + 8 * kMaxStages;
    token_empty = token_full + 8 * kMaxStages;
    scales.full = token_empty + 8 * kMaxStages;
    scales.empty = scales.full + 8 * kScaleStages;
  }

  // By one thread. `readers`: warps that multiply; `scale_lanes`: threads that copy scales.
  __device__ void init(const GemmTask& task, int readers, int scale_lanes) const {
    for (int s = 0; s < task.weight_stages; ++s) {
      init_barrier(weight_full + 8 * s, 1);
      init_barrier(weight_empty + 8 * s, readers);
    }
    for (int s = 0; s < task.token_stages; ++s) {
      init_barrier(token_full + 8 * s, 1);
      init_barrier(token_empty + 8 * s, readers);
    }
    for (int s = 0; s < kScaleStages && scale_lanes > 0; ++s) {
      init_barrier(scales.full + 8 * s, scale_lanes);
      init_barrier(scales.empty + 8 * s, readers * kArrivalsOfWarp);
    }
    publish_barriers();
  }

  // By one thread, which does not wait for the kernel ahead.
  template <int kColumns>
  __device__ void stream_weights(const GemmTask& task) const {
    prefetch_map(task.weight_map);
    const WeightCopy copy(task);
    RingPlace at;
    TileOrder{task}.for_each([&](int row_tile, int) {
      for (int stage = 0; stage < task.stages; ++stage, at.advance(task.weight_stages)) {
        const std::uint32_t full = weight_full + 8 * at.stage;
        wait(weight_empty + 8 * at.stage, at.parity ^ 1);
        arrive_expecting(full, weight_bytes);
#pragma unroll
        for (int i = 0; i < kSpan; ++i) {
          const std::uint32_t to = weights + at.stage * weight_bytes + i * weight_step;
          const int column = (stage * kSpan + i) * kColumns;
          copy(to, column, row_tile * task.rows, full);
        }
      }
    });
  }

  // By one thread.
  template <int kColumns>
  __device__ void stream_tokens(const GemmTask& task) const {
    const auto token_bytes = static_cast<std::uint32_t>(task.token_box) * kStepBytes * kSpan;
    RingPlace at;
    TileOrder{task}.for_each([&](int, int token_tile) {
      for (int stage = 0; stage < task.stages; ++stage, at.advance(task.token_stages)) {
        const std::uint32_t full = token_full + 8 * at.stage;
        wait(token_empty + 8 * at.stage, at.parity ^ 1);
        arrive_expecting(full, token_bytes);
#pragma unroll
        for (int i = 0; i < kSpan; ++i)
          copy_box(tokens + at.stage * kTokenBytes + i * kTokenStep, task.token_map,
                   (stage * kSpan + i) * kColumns, token_tile * kTokens, full);
      }
    });
  }
};

// A block of threads on every multiprocessor, or fewer where the layer has fewer tiles; or one for each seat,
// for a block computes what its seat and the number of blocks say.
template <auto kKernel, int kThreads>
void launch_persistent(const GemmTask& task, std::size_t shared_bytes, bool early, cudaStream_t stream) {
  static const cudaError_t raised = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                         static_cast<int>(kMaxSharedBytes));
  check(raised, "shared memory of the GEMM");
  const int cluster = task.cluster;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = static_cast<unsigned>(cluster);
  attributes[0].val.clusterDim.y = 1;
  attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(cluster));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 1;
  // As many clusters as the device can hold at once, which is fewer than its multiprocessors would make.
  static int at_once[kMaxCluster + 1] = {};
  if (at_once[cluster] == 0) {
    check(cudaOccupancyMaxActiveClusters(&at_once[cluster], kKernel, &config), "clusters at once");
    at_once[cluster] = std::min(at_once[cluster], multiprocessors() / cluster);
  }
  const int items = std::min(task.row_items * task.token_items, std::max(1, at_once[cluster]));
  config.gridDim =
      dim3(static_cast<unsigned>(task.seats.table.gpcs > 0 ? task.seats.table.seats() : items * cluster));
  config.numAttrs = early ? 2 : 1;
  check(cudaLaunchKernelEx(&config, kKernel, task), "GEMM");
}

}  // namespace octavo::cuda
