// The FP8 GEMM for many tokens, warp-specialized and persistent like gemm_kernel.cuh's, with the sides
// exchanged: the tokens take the 64-row side of wgmma, the weight rows the other. A thread then meets two
// tokens' scales and, in a layer whose tile has one row of scales, one of the weight's, so that adding a
// block's sums to the result costs hardly more than its multiply-adds; and tiles of any multiple of 16 weight
// rows deal a layer out evenly without waste. Products, block sums and the order of their addition are
// gemm_kernel.cuh's, and so are the bits.
#pragma once

#include "octavo/ops/cuda/gemm_rings.cuh"
#include "octavo/quant/cuda/vector_io.cuh"

namespace octavo::cuda {

// kRows: weight rows of a warpgroup. The warpgroups of a block stand kTokenGroups by kRowGroups; each
// multiplies kPerGroup tiles of 64 tokens.
template <int kRows, int kTokenGroups, int kRowGroups, int kPerGroup>
struct TallShape {
  static constexpr int kGroups = kTokenGroups * kRowGroups;
  static constexpr int kThreads = (kGroups + 1) * 128;
  static constexpr int kTokens = 64 * kTokenGroups * kPerGroup;  // of a tile
  static constexpr int kTileRows = kRows * kRowGroups;
  static constexpr int kSpan = tall_steps(kRows);  // steps of a stage
  static constexpr std::uint32_t kTokenStep = kTokens * kStepBytes;
  static constexpr std::uint32_t kWeightStep = kTileRows * kStepBytes;
  static constexpr std::uint32_t kStageBytes = (kTokenStep + kWeightStep) * kSpan;
  static constexpr int kRowScales = kRows / 16;  // of a warpgroup: rows 16 i … share the i-th
  static constexpr int kTileScales = kTileRows / 16;
  // A warpgroup begins a stage before it adds the sums of the one before, where its registers hold both.
  // Otherwise the other warpgroup keeps the tensor cores busy while it adds.
  static constexpr bool kOverlaps = kPerGroup == 1 && kRows <= 128;
  // See GemmShape of gemm_kernel.cuh.
  static constexpr int kMultiplyRegisters = 224;
  static constexpr int kCopyRegisters = 56;
  static_assert(kGroups <= 2 && (kPerGroup == 1 || kSpan == 1) && kTallScaleSteps % kSpan == 0);
};

// Shared memory, all as shared addresses. A stage holds the tokens of its steps, then the weights.
template <typename Shape>
struct TallRing {
  std::uint32_t stages, full, empty;
  using Scales = ScaleRing<Shape::kTokens, kTallScaleSteps, tall_extra_scales(Shape::kTileRows)>;
  Scales scales;
  std::uint32_t rows_full;  // the weights' part of a scale stage is there, which nothing has to wait for

  __device__ TallRing(const GemmTask& task, void* shared) {
    stages = (shared_address(shared) + 1023) / 1024 * 1024;
    scales.data = stages + Shape::kStageBytes * task.weight_stages;
    full = scales.data + Scales::kBytes * kScaleStages;
    empty = full + 8 * kMaxStages;
    scales.full = empty + 8 * kMaxStages;
    scales.empty = scales.full + 8 * kScaleStages;
    rows_full = scales.empty + 8 * kScaleStages;
  }
  __device__ std::uint32_t tokens(std::uint32_t stage) const { return stages + stage * Shape::kStageBytes; }
  __device__ std::uint32_t weights(std::uint32_t stage) const {
    return tokens(stage) + Shape::kTokenStep * Shape::kSpan;
  }

  // By one thread. A stage is full when both its parts are there, and empty when every warp that multiplies,
  // of every block of the cluster, has read its own: any of them may be given a part of it by any other.
  __device__ void init(const GemmTask& task) const {
    for (int s = 0; s < task.weight_stages; ++s) {
      init_barrier(full + 8 * s, 2);
      init_barrier(empty + 8 * s, Shape::kGroups * 4 * task.row_cluster * task.token_cluster);
    }
    for (int s = 0; s < kScaleStages; ++s) {
      init_barrier(scales.full + 8 * s, 32);
      init_barrier(rows_full + 8 * s, 32);
      init_barrier(scales.empty + 8 * s, Shape::kGroups * 128);
    }
    publish_barriers();
  }

  // A scale stage holds the tokens' scales, then each step's of the tile's rows, then for each row group
  // whether all its rows have one scale a step.
  __device__ float* row_scales(std::uint32_t stage) const {
    return scales.stage(stage) + Shape::kTokens * kTallScaleSteps;
  }
  __device__ int* same_scales(std::uint32_t stage) const {
    return reinterpret_cast<int*>(row_scales(stage) + Shape::kTileScales * kTallScaleSteps);
  }

  // fill(stage, full barrier, first step, row tile, token tile) for every stage of every tile; by one thread.
  template <typename Fill>
  __device__ void for_each_stage(const GemmTask& task, ClusterPlace place, const Fill& fill) const {
    RingPlace at;
    TileOrder{task, place}.for_each([&](int row_tile, int token_tile) {
      for (int stage = 0; stage < task.stages; ++stage, at.advance(task.weight_stages)) {
        wait(empty + 8 * at.stage, at.parity ^ 1);
        fill(at.stage, full + 8 * at.stage, stage * Shape::kSpan, row_tile, token_tile);
      }
    });
  }
  // By one warp each. The weights' scales do not wait for the kernel ahead.
  __device__ void stream_token_scales(const GemmTask& task, ClusterPlace place, int lane) const {
    scales.template stream<32>(task, place, lane, [](int token) { return token; });
  }
  __device__ void stream_weight_scales(const GemmTask& task, ClusterPlace place, int lane) const {
    scales.for_each_stage(
        task, place, rows_full,
        [&, scale_row = 0](std::uint32_t stage, int row_tile, int, int begin, int count) mutable {
          if (begin == 0) scale_row = scale_row_of(task, stage, row_tile, lane);
          if (lane >= Shape::kTileScales) return;
          const float* const from =
              task.weight_scales + static_cast<std::int64_t>(scale_row) * task.steps + begin;
          float* const to = row_scales(stage) + lane;
#pragma unroll
          for (int i = 0; i < kTallScaleSteps; ++i)
            if (i < count) to[i * Shape::kTileScales] = from[i];
        });
  }
  // By a whole warp, whose lane is `group`: the scale row of a tile's 16 rows, and what it says of row
  // groups.
  __device__ int scale_row_of(const GemmTask& task, std::uint32_t stage, int row_tile, int group) const {
    const int row = row_tile * Shape::kTileRows + group * 16;
    const bool live = group < Shape::kTileScales && row < task.out;
    const int scale_row = live ? task.scale_rows[row / 16] : 0;
#pragma unroll
    for (int g = 0; g < Shape::kTileRows / (Shape::kRowScales * 16); ++g) {
      const int first = __shfl_sync(0xffffffffU, scale_row, g * Shape::kRowScales);
      const bool mine = live && group / Shape::kRowScales == g;
      const int same = __all_sync(0xffffffffU, !mine || scale_row == first);
      if (group == 0) same_scales(stage)[g] = same;
    }
    return scale_row;
  }

  // Does not wait for the kernel ahead.
  __device__ void stream_weights(const GemmTask& task, ClusterPlace place) const {
    prefetch_map(task.weight_map);
    const std::uint64_t policy = task.token_groups == 1 ? evict_first() : evict_normal();
    const std::uint16_t mask = weight_sharers(task, place);
    for_each_stage(task, place, [&](std::uint32_t stage, std::uint32_t barrier, int step, int row_tile, int) {
      arrive_expecting(barrier, Shape::kWeightStep * Shape::kSpan);
#pragma unroll
      for (int i = 0; i < Shape::kSpan; ++i)
        copy_share(weights(stage) + i * Shape::kWeightStep, task.weight_map, (step + i) * kStepBytes,
                   row_tile * Shape::kTileRows, task.weight_box, place.token, task.token_cluster, mask,
                   barrier, policy);
    });
  }
  __device__ void stream_tokens(const GemmTask& task, ClusterPlace place) const {
    const std::uint64_t policy = evict_normal();
    const std::uint16_t mask = token_sharers(task, place);
    for_each_stage(task, place,
                   [&](std::uint32_t stage, std::uint32_t barrier, int step, int, int token_tile) {
                     arrive_expecting(barrier, static_cast<std::uint32_t>(task.token_box * task.row_cluster) *
                                                   kStepBytes * Shape::kSpan);
#pragma unroll
                     for (int i = 0; i < Shape::kSpan; ++i)
                       copy_share(tokens(stage) + i * Shape::kTokenStep, task.token_map,
                                  (step + i) * kStepBytes, token_tile * Shape::kTokens, task.token_box,
                                  place.row, task.row_cluster, mask, barrier, policy);
                   });
  }
};

// One warp of the multiplying warpgroups: sixteen tokens of each of its 64-token tiles.
template <int kRows, int kTokenGroups, int kRowGroups, int kPerGroup>
struct TallMultiplier {
  using Shape = TallShape<kRows, kTokenGroups, kRowGroups, kPerGroup>;
  using Sums = float[kRows / 2];  // a thread's share of a 64-token tile
  static constexpr int kSpan = Shape::kSpan;
  using StageSums = Sums[kSpan];

  const GemmTask& task;
  const TallRing<Shape>& ring;
  int warp, lane;
  RingPlace at{}, scales{};  // what is multiplied next
  Sums sums[kPerGroup];
  int row;  // the warpgroup's first

  __device__ int token_group() const { return warp / 4 % kTokenGroups; }
  __device__ int row_group() const { return warp / 4 / kTokenGroups; }
  // In the block's tile: this thread's first token of its 64-token tile t; the other is eight further down.
  __device__ int token(int t) const {
    return (token_group() * kPerGroup + t) * 64 + warp % 4 * 16 + lane / 4;
  }

  // Whether all rows of the warpgroup have one scale a step.
  __device__ bool begin_tile(int row_tile) {
    row = row_tile * Shape::kTileRows + row_group() * kRows;
#pragma unroll
    for (int t = 0; t < kPerGroup; ++t)
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) sums[t][i] = 0;
    wait(ring.rows_full + 8 * scales.stage, scales.parity);
    return ring.same_scales(scales.stage)[row_group()] != 0;
  }

  // Begins the block sums of a stage's steps (beyond K they are zero).
  __device__ void begin_stage(StageSums& blocks, const RingPlace& place, int tile) const {
#pragma unroll
    for (int i = 0; i < kSpan; ++i) pin(blocks[i]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSpan; ++i) {
      const std::uint64_t a =
          matrix_descriptor(ring.tokens(place.stage) + i * Shape::kTokenStep +
                            static_cast<std::uint32_t>(token_group() * kPerGroup + tile) * (64 * kStepBytes));
      const std::uint64_t b =
          matrix_descriptor(ring.weights(place.stage) + i * Shape::kWeightStep +
                            static_cast<std::uint32_t>(row_group()) * (kRows * kStepBytes));
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        wgmma_e4m3<kRows>(blocks[i], a + k * 2, b + k * 2, k > 0);
      }
    }
    wgmma_commit();
  }
  // The scales of a stage's steps: of this thread's two tokens, times the weight's where all rows have one.
  // Read before the block sums are there, so that their latency is not on the way of the next.
  struct Scales {
    float low[kSpan];
    float high[kSpan];
  };
  __device__ const float* row_scales(int step) const {
    return ring.row_scales(scales.stage) + step % kTallScaleSteps * Shape::kTileScales +
           row_group() * Shape::kRowScales;
  }
  template <bool kOneScale>
  __device__ Scales read_scales(int tile, int stage) {
    const int first = stage * kSpan;
    if (tile == 0 && first % kTallScaleSteps == 0) {
      wait(ring.scales.full + 8 * scales.stage, scales.parity);
      if (first > 0) wait(ring.rows_full + 8 * scales.stage, scales.parity);
    }
    const float* const token_scales =
        ring.scales.stage(scales.stage) + first % kTallScaleSteps * Shape::kTokens + token(tile);
    Scales read;
#pragma unroll
    for (int i = 0; i < kSpan; ++i) {
      read.low[i] = token_scales[i * Shape::kTokens];
      read.high[i] = token_scales[i * Shape::kTokens + 8];
      if (kOneScale) {
        const float weight = *row_scales(first + i);
        read.low[i] = __fmul_rn(read.low[i], weight);
        read.high[i] = __fmul_rn(read.high[i], weight);
      }
    }
    return read;
  }
  // Adds them to the result, in rising order.
  template <bool kOneScale>
  __device__ void end_stage(StageSums& blocks, int tile, int stage, const Scales& read) {
#pragma unroll
    for (int i = 0; i < kSpan; ++i) pin(blocks[i]);
    const bool last = tile == kPerGroup - 1;
    if (last) {
      release(ring.empty + 8 * at.stage, lane, task.row_cluster * task.token_cluster, 0, 1);
      at.advance(task.weight_stages);
    }
#pragma unroll
    for (int i = 0; i < kSpan; ++i) {
      const int step = stage * kSpan + i;
      if (i > 0 && step >= task.steps) break;
      promote<kOneScale>(sums[tile], blocks[i], read.low[i], read.high[i], step);
    }
    if (last && ((stage + 1) * kSpan % kTallScaleSteps == 0 || stage == task.stages - 1)) {
      arrive(ring.scales.empty + 8 * scales.stage);
      scales.advance(kScaleStages);
    }
  }
  // sums += block sums · scales of their token and of their weight rows.
  template <bool kOneScale>
  __device__ void promote(Sums& total, const Sums& block, float low, float high, int step) const {
    float low_scale = low;
    float high_scale = high;
#pragma unroll
    for (int j = 0; j < kRows / 8; ++j) {
      if (!kOneScale && j % 2 == 0) {
        const float weight = row_scales(step)[j / 2];
        low_scale = __fmul_rn(low, weight);
        high_scale = __fmul_rn(high, weight);
      }
      total[j * 4] = __fmaf_rn(block[j * 4], low_scale, total[j * 4]);
      total[j * 4 + 1] = __fmaf_rn(block[j * 4 + 1], low_scale, total[j * 4 + 1]);
      total[j * 4 + 2] = __fmaf_rn(block[j * 4 + 2], high_scale, total[j * 4 + 2]);
      total[j * 4 + 3] = __fmaf_rn(block[j * 4 + 3], high_scale, total[j * 4 + 3]);
    }
  }

  // One stage and tile at a time. Whether the next stage is there is asked while this one's products are
  // under way: the answer takes as long as a fifth of them.
  template <bool kOneScale>
  __device__ void sum_in_order() {
    StageSums blocks;
    bool ready = false;
    for (int stage = 0; stage < task.stages; ++stage) {
      if (!ready) wait(ring.full + 8 * at.stage, at.parity);
      const RingPlace place = at;
#pragma unroll
      for (int t = 0; t < kPerGroup; ++t) {
        begin_stage(blocks, place, t);
        const Scales read = read_scales<kOneScale>(t, stage);
        if (t == kPerGroup - 1) {
          RingPlace next = at;
          next.advance(task.weight_stages);
          ready = stage + 1 < task.stages && is_done_now(ring.full + 8 * next.stage, next.parity);
        }
        wgmma_wait<0>();
        end_stage<kOneScale>(blocks, t, stage, read);
      }
    }
  }

  // With the next stage under way. As to the loop's shape see gemm_kernel.cuh.
  template <bool kOneScale>
  __device__ void sum_overlapped() {
    StageSums even;
    StageSums odd;
    RingPlace next = at;
    const auto begin = [&](StageSums& blocks) {
      wait(ring.full + 8 * next.stage, next.parity);
      begin_stage(blocks, next, 0);
      next.advance(task.weight_stages);
    };
    begin(even);
    int stage = 0;
    Scales read;
    for (; stage + 2 < task.stages; stage += 2) {
      begin(odd);
      read = read_scales<kOneScale>(0, stage);
      wgmma_wait<1>();
      end_stage<kOneScale>(even, 0, stage, read);
      begin(even);
      read = read_scales<kOneScale>(0, stage + 1);
      wgmma_wait<1>();
      end_stage<kOneScale>(odd, 0, stage + 1, read);
    }
    if (stage + 1 < task.stages) {
      begin(odd);
      read = read_scales<kOneScale>(0, stage);
      wgmma_wait<1>();
      end_stage<kOneScale>(even, 0, stage, read);
      read = read_scales<kOneScale>(0, stage + 1);
      wgmma_wait<0>();
      end_stage<kOneScale>(odd, 0, stage + 1, read);
    } else {
      read = read_scales<kOneScale>(0, stage);
      wgmma_wait<0>();
      end_stage<kOneScale>(even, 0, stage, read);
    }
  }
  template <bool kOneScale>
  __device__ void sum() {
    if constexpr (Shape::kOverlaps)
      sum_overlapped<kOneScale>();
    else
      sum_in_order<kOneScale>();
  }

  // The four lanes of a token hold two neighbouring rows each of every eight. Exchanged between two of them,
  // a lane holds four neighbouring rows of one chunk of eight or of the next, and a store of the four is a
  // whole sector of memory.
  template <bool kBiased>
  __device__ void store(int token_tile) const {
    const bool odd = lane % 2 != 0;
    const int column = (odd ? 8 : 0) + lane % 4 / 2 * 4;
#pragma unroll
    for (int t = 0; t < kPerGroup; ++t) {
      const int first = token_tile * Shape::kTokens + token(t);
      bf16* const y = task.y + first * task.y_stride + row + column;
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // the first token, then the one eight further down
        const bool live = first + half * 8 < task.tokens;
#pragma unroll
        for (int chunk = 0; chunk < kRows / 8; chunk += 2) {
          std::uint32_t v[2];
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int sum = (chunk + c) * 4 + half * 2;
            float low = 0;
            float high = 0;
            if (kBiased) {
              const int at = row + (chunk + c) * 8 + lane % 4 * 2;
              if (at < task.out) low = task.bias[at], high = task.bias[at + 1];
            }
            v[c] = pack_bf16(__fadd_rn(sums[t][sum], low), __fadd_rn(sums[t][sum + 1], high));
          }
          const std::uint32_t got = __shfl_xor_sync(0xffffffffU, odd ? v[0] : v[1], 1);
          if (live && row + chunk * 8 < task.out)
            *reinterpret_cast<uint2*>(y + half * 8 * task.y_stride + chunk * 8) =
                odd ? make_uint2(got, v[1]) : make_uint2(v[0], got);
        }
      }
    }
  }
};

template <int kRows, int kTokenGroups, int kRowGroups, int kPerGroup>
__global__ void __launch_bounds__(TallShape<kRows, kTokenGroups, kRowGroups, kPerGroup>::kThreads, 1)
    tall_gemm_kernel(const __grid_constant__ GemmTask task) {
  using Shape = TallShape<kRows, kTokenGroups, kRowGroups, kPerGroup>;
  extern __shared__ std::uint8_t shared[];
  const TallRing<Shape> ring(task, shared);
  const int warp = __shfl_sync(0xffffffffU, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const ClusterPlace place(task);
  if (threadIdx.x == 0) ring.init(task);
  sync_cluster(task);

  if (warp >= Shape::kGroups * 4) {
    if constexpr (Shape::kGroups > 1) give_registers<Shape::kCopyRegisters>();
    const int role = warp - Shape::kGroups * 4;
    if (role == 0) {
      if (lane == 0) ring.stream_weights(task, place);
    } else if (role == 1) {
      wait_for_previous_kernel();
      if (lane == 0) {
        let_next_kernel_start();
        ring.stream_tokens(task, place);
      }
    } else if (role == 2) {
      wait_for_previous_kernel();
      ring.stream_token_scales(task, place, lane);
    } else {
      ring.stream_weight_scales(task, place, lane);
    }
  } else {
    if constexpr (Shape::kGroups > 1) take_registers<Shape::kMultiplyRegisters>();
    TallMultiplier<kRows, kTokenGroups, kRowGroups, kPerGroup> multiplier{task, ring, warp, lane};
    TileOrder{task, place}.for_each([&](int row_tile, int token_tile) {
      if (multiplier.begin_tile(row_tile))
        multiplier.template sum<true>();
      else
        multiplier.template sum<false>();
      if (task.bias == nullptr)
        multiplier.template store<false>(token_tile);
      else
        multiplier.template store<true>(token_tile);
    });
  }
  leave_cluster(task);
}

}  // namespace octavo::cuda
