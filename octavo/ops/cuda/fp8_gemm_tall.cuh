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
  static constexpr int kBoxRows = result_box(kRows);
  static constexpr std::uint32_t kBoxBytes = 64 * kBoxRows * 2;
  static constexpr std::uint32_t kResultBytes = kPerGroup * 64 * kRows * 2;  // of a warpgroup
  static constexpr int kRowScales = kRows / 16;  // of a warpgroup: rows 16 i … share the i-th
  static constexpr int kScaleLanes = 64;         // threads that copy the tokens' scales
  // See GemmShape of gemm_kernel.cuh.
  static constexpr int kMultiplyRegisters = 224;
  static constexpr int kCopyRegisters = 56;
  static_assert(kGroups <= 2 && (kPerGroup == 1 || kSpan == 1) && kTallScaleSteps % kSpan == 0);
};

// Shared memory, all as shared addresses. A stage holds the tokens of its steps, then the weights; a
// warpgroup's results wait to be stored in boxes of 64 tokens, those of its first 64 tokens first.
template <typename Shape>
struct TallRing {
  std::uint32_t stages, results, full, empty;
  using Scales = ScaleRing<Shape::kTokens, kTallScaleSteps>;
  Scales scales;

  __device__ TallRing(const GemmTask& task, void* shared) {
    stages = (shared_address(shared) + 1023) / 1024 * 1024;
    results = stages + Shape::kStageBytes * task.weight_stages;
    scales.data = results + Shape::kResultBytes * Shape::kGroups;
    full = scales.data + Scales::kBytes * kScaleStages;
    empty = full + 8 * kMaxStages;
    scales.full = empty + 8 * kMaxStages;
    scales.empty = scales.full + 8 * kScaleStages;
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
      init_barrier(empty + 8 * s, static_cast<std::uint32_t>(Shape::kGroups * 4 * task.cluster));
    }
    for (int s = 0; s < kScaleStages; ++s) {
      init_barrier(scales.full + 8 * s, Shape::kScaleLanes);
      init_barrier(scales.empty + 8 * s, Shape::kGroups * 4);
    }
    publish_barriers();
  }

  // fill(stage, full barrier, first step, row tile, token tile) for every stage of every tile; by one thread.
  template <typename Fill>
  __device__ void for_each_stage(const GemmTask& task, const Fill& fill) const {
    RingPlace at;
    TileOrder{task}.for_each([&](int row_tile, int token_tile) {
      for (int stage = 0; stage < task.stages; ++stage, at.advance(task.weight_stages)) {
        wait(empty + 8 * at.stage, at.parity ^ 1);
        fill(at.stage, full + 8 * at.stage, stage * Shape::kSpan, row_tile, token_tile);
      }
    });
  }
  // Does not wait for the kernel ahead.
  __device__ void stream_weights(const GemmTask& task) const {
    prefetch_map(task.weight_map);
    for_each_stage(task, [&](std::uint32_t stage, std::uint32_t barrier, int step, int row_tile, int) {
      arrive_expecting(barrier, Shape::kWeightStep * Shape::kSpan);
#pragma unroll
      for (int i = 0; i < Shape::kSpan; ++i)
        copy_box(weights(stage) + i * Shape::kWeightStep, task.weight_map, (step + i) * kStepBytes,
                 row_tile * Shape::kTileRows, barrier);
    });
  }
  // Of a cluster, each block brings its share to all.
  __device__ void stream_tokens(const GemmTask& task) const {
    const auto rank = static_cast<int>(rank_in_cluster());
    const auto all = static_cast<std::uint16_t>((1U << task.cluster) - 1);
    const auto bytes = static_cast<std::uint32_t>(task.token_box * task.cluster) * kStepBytes * Shape::kSpan;
    for_each_stage(task, [&](std::uint32_t stage, std::uint32_t barrier, int step, int, int token_tile) {
      arrive_expecting(barrier, bytes);
#pragma unroll
      for (int i = 0; i < Shape::kSpan; ++i) {
        const std::uint32_t to = tokens(stage) + i * Shape::kTokenStep;
        const int column = (step + i) * kStepBytes;
        const int token = token_tile * Shape::kTokens;
        const int share = rank * task.token_box;
        if (task.cluster == 1)
          copy_box(to, task.token_map, column, token, barrier);
        else
          copy_box_to_cluster(to + static_cast<std::uint32_t>(share) * kStepBytes, task.token_map, column,
                              token + share, barrier, all);
      }
    });
  }
};

// How many rows of scales a warpgroup's rows of a tile have: one; one for the first of them and another for
// the rest; or any, where parts of a fused layer are smaller than a tile.
enum class RowScaleKind { kOne, kTwo, kAny };

// The scales of a warpgroup's kCount times 16 rows, in the registers of a warp. One or two rows of them are
// held for 32 steps, with the next 32, of the next tile too, under way meanwhile; of any, each step's when
// the one before ends.
template <int kCount>
struct RowScales {
  // Of the next tile.
  int next_scale_row;       // lane i's, for rows 16 i …
  const float* next_of[2];  // [steps], of the first rows and of the last
  float next[2];            // lane i: of the i-th of the next 32 steps
  int next_split;

  const float* of[2];
  float held[2];
  int split;  // the first of the kCount that has the last row of scales; kCount: there is one; -1: there are
              // others
  const float* own;  // lane i's, for rows 16 i …
  float of_next_step;

  __device__ void look_up(const GemmTask& task, int row, int lane) {
    // Rows beyond the matrix are as good as the last in it.
    next_scale_row = task.scale_rows[min(row / 16 + min(lane, kCount - 1), task.out / 16 - 1)];
  }
  // What look_up() found must be there by now.
  __device__ void prefetch(const GemmTask& task, int lane) {
    const int first = __shfl_sync(0xffffffffU, next_scale_row, 0);
    const int last = __shfl_sync(0xffffffffU, next_scale_row, kCount - 1);
    const unsigned others = __ballot_sync(0xffffffffU, next_scale_row != first);
    next_split = others == 0 ? kCount : __ffs(static_cast<int>(others)) - 1;
    if (!__all_sync(0xffffffffU, next_scale_row == (lane < next_split ? first : last))) next_split = -1;
    next_of[0] = task.weight_scales + static_cast<std::int64_t>(first) * task.steps;
    next_of[1] = task.weight_scales + static_cast<std::int64_t>(last) * task.steps;
#pragma unroll
    for (int end = 0; end < 2; ++end) next[end] = lane < task.steps ? next_of[end][lane] : 0.0F;
  }
  __device__ RowScaleKind begin_tile(const GemmTask& task) {
    split = next_split;
#pragma unroll
    for (int end = 0; end < 2; ++end) of[end] = next_of[end];
    if (split == kCount) return RowScaleKind::kOne;
    own = task.weight_scales + static_cast<std::int64_t>(next_scale_row) * task.steps;
    of_next_step = own[0];
    return split > 0 ? RowScaleKind::kTwo : RowScaleKind::kAny;
  }
  // Before step `first`, a multiple of 32.
  template <RowScaleKind kKind>
  __device__ void hold(int first, int steps, int lane) {
#pragma unroll
    for (int end = 0; end < (kKind == RowScaleKind::kTwo ? 2 : 1); ++end) {
      held[end] = next[end];
      if (first + 32 + lane < steps) next[end] = of[end][first + 32 + lane];
    }
  }
};

// One warp of the multiplying warpgroups: sixteen tokens of each of its 64-token tiles.
template <int kRows, int kTokenGroups, int kRowGroups, int kPerGroup>
struct TallMultiplier {
  using Shape = TallShape<kRows, kTokenGroups, kRowGroups, kPerGroup>;
  using Sums = float[kRows / 2];  // a thread's share of a 64-token tile
  static constexpr int kSpan = Shape::kSpan;
  using StageSums = Sums[kSpan];

  // The matrices of a stage, as wgmma is told of them: this warpgroup's tokens and rows of the first step.
  struct Operands {
    std::uint32_t tokens, rows;  // the low half of the descriptor (matrix_descriptor_of)
  };

  const GemmTask& task;
  const TallRing<Shape>& ring;
  int warp, lane;
  Operands first_operands;  // of stage 0
  StageRelease release;
  RingPlace at{}, scales{};  // what is multiplied next
  Sums sums[kPerGroup];
  int row;  // the warpgroup's first
  RowScales<Shape::kRowScales> row_scales;

  __device__ TallMultiplier(const GemmTask& task, const TallRing<Shape>& ring, int warp, int lane)
      : task(task), ring(ring), warp(warp), lane(lane), release(ring.empty, lane, task.cluster) {
    // Through a shuffle: it would otherwise be found out again every stage, while the tensor cores wait.
    const auto keep = [](std::uint32_t address) {
      return __shfl_sync(0xffffffffU, static_cast<std::uint32_t>(matrix_descriptor(address)), 0);
    };
    first_operands = {
        keep(ring.tokens(0) + static_cast<std::uint32_t>(token_group() * kPerGroup) * (64 * kStepBytes)),
        keep(ring.weights(0) + static_cast<std::uint32_t>(row_group()) * (kRows * kStepBytes))};
  }

  __device__ int token_group() const { return warp / 4 % kTokenGroups; }
  __device__ int row_group() const { return warp / 4 / kTokenGroups; }
  // In the block's tile: this thread's first token of its 64-token tile t; the other is eight further down.
  __device__ int token(int t) const {
    return (token_group() * kPerGroup + t) * 64 + warp % 4 * 16 + lane / 4;
  }

  __device__ int first_row(int row_tile) const { return row_tile * Shape::kTileRows + row_group() * kRows; }
  __device__ RowScaleKind begin_tile(int row_tile) {
    row = first_row(row_tile);
#pragma unroll
    for (int t = 0; t < kPerGroup; ++t)
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) sums[t][i] = 0;
    return row_scales.begin_tile(task);
  }

  __device__ Operands operands(std::uint32_t stage) const {
    constexpr std::uint32_t kStage = Shape::kStageBytes / 16;
    return {first_operands.tokens + stage * kStage, first_operands.rows + stage * kStage};
  }
  // Begins the block sums of a stage's steps (beyond K they are zero).
  __device__ static void begin_stage(StageSums& blocks, const Operands& of, int tile) {
#pragma unroll
    for (int i = 0; i < kSpan; ++i) pin(blocks[i]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSpan; ++i) {
      const std::uint64_t a =
          matrix_descriptor_of(of.tokens + (i * Shape::kTokenStep + tile * 64 * kStepBytes) / 16);
      const std::uint64_t b = matrix_descriptor_of(of.rows + i * (Shape::kWeightStep / 16));
#pragma unroll
      for (int k = 0; k < 4; ++k) wgmma_e4m3<kRows>(blocks[i], a + k * 2, b + k * 2, k > 0);
    }
    wgmma_commit();
  }
  // The scales of a stage's steps: of this thread's two tokens, times those of the rows where these are one
  // or two. Read before the block sums are there, so that their latency is not on the way of the next.
  template <RowScaleKind kKind>
  struct Scales {
    static constexpr int kEnds = kKind == RowScaleKind::kTwo ? 2 : 1;
    float low[kSpan][kEnds];
    float high[kSpan][kEnds];
  };
  template <RowScaleKind kKind>
  __device__ void read_scales(Scales<kKind>& read, int tile, int stage) {
    const int first = stage * kSpan;
    if (tile == 0) {
      if (first % kTallScaleSteps == 0) wait(ring.scales.full + 8 * scales.stage, scales.parity);
      if (kKind != RowScaleKind::kAny && first % 32 == 0)
        row_scales.template hold<kKind>(first, task.steps, lane);
    }
    const float* const token_scales =
        ring.scales.stage(scales.stage) + first % kTallScaleSteps * Shape::kTokens + token(tile);
#pragma unroll
    for (int i = 0; i < kSpan; ++i) {
      const float low = token_scales[i * Shape::kTokens];
      const float high = token_scales[i * Shape::kTokens + 8];
#pragma unroll
      for (int end = 0; end < Scales<kKind>::kEnds; ++end) {
        float weight = 1.0F;
        if constexpr (kKind != RowScaleKind::kAny)
          weight = __shfl_sync(0xffffffffU, row_scales.held[end], (first + i) % 32);
        read.low[i][end] = __fmul_rn(low, weight);
        read.high[i][end] = __fmul_rn(high, weight);
      }
    }
    if (tile == kPerGroup - 1 && ((first + kSpan) % kTallScaleSteps == 0 || stage == task.stages - 1)) {
      __syncwarp();
      if (lane == 0) arrive(ring.scales.empty + 8 * scales.stage);
      scales.advance(kScaleStages);
    }
  }
  // Adds the block sums to the result, in rising order.
  template <RowScaleKind kKind>
  __device__ void end_stage(StageSums& blocks, int tile, int stage, const Scales<kKind>& read) {
#pragma unroll
    for (int i = 0; i < kSpan; ++i) pin(blocks[i]);
    const bool last = tile == kPerGroup - 1;
    if (last) release(at.stage);
#pragma unroll
    for (int i = 0; i < kSpan; ++i) {
      const int step = stage * kSpan + i;
      if (i > 0 && step >= task.steps) break;
      promote<kKind>(sums[tile], blocks[i], read.low[i], read.high[i]);
      if (kKind == RowScaleKind::kAny && last && step + 1 < task.steps)
        row_scales.of_next_step = row_scales.own[step + 1];
    }
  }
  // sums += block sums · scales of their token and of their weight rows.
  template <RowScaleKind kKind, int kEnds>
  __device__ void promote(Sums& total, const Sums& block, const float (&low)[kEnds],
                          const float (&high)[kEnds]) const {
#pragma unroll
    for (int i = 0; i < Shape::kRowScales; ++i) {
      float low_scale = low[0];
      float high_scale = high[0];
      if constexpr (kKind == RowScaleKind::kTwo) {
        if (i >= row_scales.split) low_scale = low[1], high_scale = high[1];
      } else if constexpr (kKind == RowScaleKind::kAny) {
        const float weight = __shfl_sync(0xffffffffU, row_scales.of_next_step, i);
        low_scale = __fmul_rn(low_scale, weight);
        high_scale = __fmul_rn(high_scale, weight);
      }
#pragma unroll
      for (int j = i * 8; j < i * 8 + 8; j += 4) {
        total[j] = __fmaf_rn(block[j], low_scale, total[j]);
        total[j + 1] = __fmaf_rn(block[j + 1], low_scale, total[j + 1]);
        total[j + 2] = __fmaf_rn(block[j + 2], high_scale, total[j + 2]);
        total[j + 3] = __fmaf_rn(block[j + 3], high_scale, total[j + 3]);
      }
    }
  }

  // One stage and tile at a time: the other warpgroup, where there is one, keeps the tensor cores busy while
  // this one adds, and a stage is given back as soon as it has been multiplied. All that the next stage needs
  // is prepared while this one's products are under way; whether it is there, too: the answer takes as long
  // as a fifth of them.
  template <RowScaleKind kKind>
  __device__ void sum() {
    StageSums blocks;
    Operands of = operands(at.stage);
    bool ready = false;
    for (int stage = 0; stage < task.stages; ++stage) {
      if (!ready) wait(ring.full + 8 * at.stage, at.parity);
      RingPlace next = at;
      next.advance(task.weight_stages);
      const Operands next_of = operands(next.stage);
#pragma unroll
      for (int t = 0; t < kPerGroup; ++t) {
        begin_stage(blocks, of, t);
        Scales<kKind> read;
        read_scales<kKind>(read, t, stage);
        if (t == kPerGroup - 1)
          ready = stage + 1 < task.stages && is_done_now(ring.full + 8 * next.stage, next.parity);
        wgmma_wait<0>();
        end_stage<kKind>(blocks, t, stage, read);
      }
      at = next;
      of = next_of;
    }
  }

  __device__ void sum(RowScaleKind kind) {
    if (kind == RowScaleKind::kOne) return sum<RowScaleKind::kOne>();
    // Tiles that fit into blocks of 128 rows meet two where a part ends inside, which is rare.
    if constexpr (kBlock % kRows != 0) {
      if (kind == RowScaleKind::kTwo) return sum<RowScaleKind::kTwo>();
    }
    sum<RowScaleKind::kAny>();
  }

  __device__ void add_bias() {
#pragma unroll
    for (int chunk = 0; chunk < kRows / 8; ++chunk) {
      const int at = row + chunk * 8 + lane % 4 * 2;
      if (at >= task.out) return;
      const float bias[2] = {task.bias[at], task.bias[at + 1]};
#pragma unroll
      for (int t = 0; t < kPerGroup; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[t][chunk * 4 + i] = __fadd_rn(sums[t][chunk * 4 + i], bias[i % 2]);
    }
  }

  // Through shared memory, from where tensor copies take the results while the next tile is multiplied.
  __device__ void store(int token_tile) {
    const auto sync_group = [&] { asm volatile("bar.sync %0, 128;" ::"r"(1 + warp / 4) : "memory"); };
    const bool stores = warp % 4 == 0 && lane == 0;
    const std::uint32_t results = ring.results + static_cast<std::uint32_t>(warp / 4) * Shape::kResultBytes;
    if (task.bias != nullptr) add_bias();
    if (stores) wait_for_stores();
    sync_group();
    // A lane's row of the 8×8 matrices: of tokens 0 to 7 and 8 to 15 of the warp's, of one chunk of eight
    // rows and of the next.
    const std::uint32_t token = warp % 4 * 16 + lane % 16;
    const int next = lane / 16;
#pragma unroll
    for (int t = 0; t < kPerGroup; ++t)
#pragma unroll
      for (int chunk = 0; chunk < kRows / 8; chunk += 2) {
        constexpr int kChunks = Shape::kBoxRows / 8;
        const std::uint32_t box = (next != 0 ? chunk + 1 : chunk) / kChunks + t * (kRows / Shape::kBoxRows);
        std::uint32_t place = (next != 0 ? chunk + 1 : chunk) % kChunks;
        if constexpr (kChunks == 8) place ^= token % 8;  // the map's swizzle
        std::uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          pairs[i] = pack_bf16(sums[t][chunk * 4 + i * 2], sums[t][chunk * 4 + i * 2 + 1]);
        store_matrices(results + box * Shape::kBoxBytes + token * (Shape::kBoxRows * 2) + place * 16, pairs);
      }
    fence_shared_copies();
    sync_group();
    if (stores) {
#pragma unroll
      for (int t = 0; t < kPerGroup; ++t) {
        const int first = token_tile * Shape::kTokens + (token_group() * kPerGroup + t) * 64;
#pragma unroll
        for (int i = 0; i < kRows; i += Shape::kBoxRows)
          if (first < task.tokens && row + i < task.out)
            store_box(task.y_map, row + i, first,
                      results + (t * kRows + i) / Shape::kBoxRows * Shape::kBoxBytes);
      }
      commit_stores();
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
  const auto sync = [&task] {
    if (task.cluster == 1) return __syncthreads();
    cluster_arrive();
    cluster_wait();
  };
  if (threadIdx.x == 0) ring.init(task);
  sync();

  if (warp >= Shape::kGroups * 4) {
    if constexpr (Shape::kGroups > 1) give_registers<Shape::kCopyRegisters>();
    const int role = warp - Shape::kGroups * 4;
    if (role == 0) {
      if (lane == 0) ring.stream_weights(task);
    } else if (role == 1) {
      wait_for_previous_kernel();
      if (lane == 0) {
        let_next_kernel_start();
        ring.stream_tokens(task);
      }
    } else {
      wait_for_previous_kernel();
      ring.scales.template stream<Shape::kScaleLanes>(task, (role - 2) * 32 + lane,
                                                      [](int token) { return token; });
    }
  } else {
    if constexpr (Shape::kGroups > 1) take_registers<Shape::kMultiplyRegisters>();
    TallMultiplier<kRows, kTokenGroups, kRowGroups, kPerGroup> multiplier(task, ring, warp, lane);
    const TileOrder order{task};
    const auto look_up = [&](int item) {
      if (item < order.count())
        order.tile(item, [&](int row_tile, int) {
          multiplier.row_scales.look_up(task, multiplier.first_row(row_tile), lane);
        });
    };
    look_up(order.first());
    multiplier.row_scales.prefetch(task, lane);
    for (int item = order.first(); item < order.count(); item += order.step())
      order.tile(item, [&](int row_tile, int token_tile) {
        const RowScaleKind kind = multiplier.begin_tile(row_tile);
        look_up(item + order.step());
        multiplier.sum(kind);
        multiplier.row_scales.prefetch(task, lane);
        multiplier.store(token_tile);
      });
    wait_for_stores();  // shared memory is the next block's then
  }
  if (task.cluster > 1) {  // the other may still write to this block's shared memory
    __syncwarp();
    sync();
  }
}

}  // namespace octavo::cuda
