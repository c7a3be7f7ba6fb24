// The FP8 GEMM for many tokens, warp-specialized and persistent like gemm_kernel.cuh's, with the sides
// exchanged: the tokens take the 64-row side of wgmma, the weight rows the other. A thread then meets two
// tokens' scales and, in a layer whose tile has one row of scales, one of the weight's, so that adding a
// block's sums to the result costs hardly more than its multiply-adds; and tiles of any multiple of 16 weight
// rows deal a layer out evenly without waste. Products, block sums and the order of their addition are
// gemm_kernel.cuh's, and so are the bits.
#pragma once

#include <iterator>
#include <numeric>

#include "octavo/ops/cuda/tall_results.cuh"

namespace octavo::cuda {

// By a predicate: at the end of a branch the value would be moved to where it is kept, which waits for it.
__device__ inline void load_if(bool wanted, float& value, const float* from) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %1, 0;\n@p ld.global.nc.f32 %0, [%2];\n}"
               : "+f"(value)
               : "r"(static_cast<int>(wanted)), "l"(from));
}

// The scales of a unit's kCount times 16 rows, in the registers of a warp. Where these share one row of
// scales, or the first of them one and the rest another, those are held for 32 steps, with the next 32, of
// the next tile too, under way meanwhile; otherwise each step's come when the one before ends.
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
  __device__ void begin_tile(const GemmTask& task) {
    split = next_split;
#pragma unroll
    for (int end = 0; end < 2; ++end) of[end] = next_of[end];
    if (split == kCount) return;
    own = task.weight_scales + static_cast<std::int64_t>(next_scale_row) * task.steps;
    of_next_step = own[0];
  }
  // Before step `first`, a multiple of 32; of one or two rows of scales.
  template <int kEnds>
  __device__ void hold(int first, int steps, int lane) {
#pragma unroll
    for (int end = 0; end < kEnds; ++end) {
      held[end] = next[end];
      load_if(first + 32 + lane < steps, next[end], of[end] + first + 32 + lane);
    }
  }
};

// One warp of the multiplying warpgroups: sixteen tokens of each 64 that the warpgroup has.
template <typename Shape>
struct TallMultiplier {
  static constexpr int kRows = Shape::kRows;
  static constexpr int kPerGroup = Shape::kPerGroup;
  static constexpr int kSpan = Shape::kSpan;
  using Sums = float[kRows / 2];  // a thread's share of a unit
  // Where no other warpgroup keeps the tensor cores busy meanwhile, and registers allow, the next unit's
  // products are under way while a unit's sums are added.
  static constexpr int kSets = Shape::kGroups == 1 && kPerGroup == 1 && kSpan == 1 ? 2 : 1;
  using Blocks = Sums[kSpan];

  // Where a stage is: as the matrices that wgmma is told of (the low half of the descriptor of this
  // warpgroup's tokens and rows of the first step, see matrix_descriptor_of) and as barriers.
  struct Stage {
    RingPlace place;
    std::uint32_t tokens, rows, full;
  };

  const GemmTask& task;
  const TallRing<Shape>& ring;
  int warp, lane;
  std::uint32_t first_tokens, first_rows;  // of stage 0
  StageRelease<Shape::kGated> release;
  Stage at, next;                // which is multiplied, and the one after it
  bool ready = false;            // the one after it is there
  std::uint32_t scale_step = 0;  // of the boxes of scales, from the kernel's beginning
  Sums sums[kPerGroup];
  int row;  // the warpgroup's first
  RowScales<Shape::kRowScales> row_scales[Shape::kGated ? 2 : 1];

  __device__ TallMultiplier(const GemmTask& task, const TallRing<Shape>& ring, int warp, int lane)
      : task(task), ring(ring), warp(warp), lane(lane), release(ring.empty, lane, task.cluster) {
    // Through a shuffle: it would otherwise be found out again every stage, while the tensor cores wait.
    const auto keep = [](std::uint32_t address) { return __shfl_sync(0xffffffffU, matrix_low(address), 0); };
    first_tokens =
        keep(ring.tokens(0) + static_cast<std::uint32_t>(token_group() * Shape::kGroupTokens) * kStepBytes);
    first_rows = keep(ring.weights(0) + static_cast<std::uint32_t>(row_group()) * (kRows * kStepBytes));
    at = stage_at({});
  }

  __device__ int token_group() const { return warp / 4 % Shape::kTokenGroups; }
  __device__ int row_group() const { return warp / 4 / Shape::kTokenGroups; }
  // In the block's tile: this thread's first token of a unit; the other is eight further down.
  __device__ int token(int unit) const {
    return token_group() * Shape::kGroupTokens + (Shape::kGated ? 0 : unit * 64) + warp % 4 * 16 + lane / 4;
  }

  // Of the warpgroup; gated, gate's.
  __device__ int first_row(int row_tile) const {
    if constexpr (Shape::kGated) return row_tile * kRows;
    return row_tile * Shape::kTileRows + row_group() * kRows;
  }
  // The scales of a unit's rows.
  __device__ auto& row_scales_of(int unit) { return row_scales[Shape::kGated ? unit : 0]; }
  // Of the next tile's rows, in two steps.
  __device__ void look_up(int row_tile) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(std::size(row_scales)); ++i)
      row_scales[i].look_up(task, first_row(row_tile) + i * (task.out / 2), lane);
  }
  __device__ void prefetch() {
#pragma unroll
    for (auto& scales : row_scales) scales.prefetch(task, lane);
  }
  __device__ void begin_tile(int row_tile) {
    row = first_row(row_tile);
#pragma unroll
    for (int t = 0; t < kPerGroup; ++t)
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) sums[t][i] = 0;
#pragma unroll
    for (auto& scales : row_scales) scales.begin_tile(task);
    scale_step = (scale_step + kScaleBoxSteps - 1) / kScaleBoxSteps * kScaleBoxSteps;
  }

  __device__ Stage stage_at(RingPlace place) const {
    constexpr std::uint32_t kStage = Shape::kStageBytes / 16;
    return {place, first_tokens + place.stage * kStage, first_rows + place.stage * kStage,
            ring.full + 8 * place.stage};
  }
  // What is needed of the stage after `at`, ahead of time; whether it is there, too: the answer takes as long
  // as a fifth of a stage's products.
  __device__ void look_ahead() {
    RingPlace place = at.place;
    place.advance(task.weight_stages);
    next = stage_at(place);
    ready = ring.is_there(next.full, place.parity);
  }

  // Begins the block sums of a unit of stage `at` (beyond K they are zero).
  __device__ void begin(Blocks& blocks, int unit) const {
    const std::uint32_t tokens = at.tokens + (Shape::kGated ? 0 : unit * (64 * kStepBytes / 16));
    const std::uint32_t rows = at.rows + (Shape::kGated ? unit * (kRows * kStepBytes / 16) : 0);
#pragma unroll
    for (int i = 0; i < kSpan; ++i) pin(blocks[i]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSpan; ++i) {
      const std::uint32_t a = tokens + i * (Shape::kTokenStep / 16);
      const std::uint32_t b = rows + i * (Shape::kWeightStep / 16);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        wgmma_e4m3<kRows>(blocks[i], matrix_descriptor_of(a + k * 2), matrix_descriptor_of(b + k * 2), k > 0);
    }
    wgmma_commit();
  }

  // kSplit: of a unit's rows, in sixteens, how many share a row of scales before the rest share another:
  // all of them, some (kSome: row_scales.split knows how many), or 0 where neither is so (parts of a fused
  // layer that are smaller than a tile).
  static constexpr int kSome = -1;
  template <int kSplit>
  static constexpr int kEnds = kSplit == 0 || kSplit == Shape::kRowScales ? 1 : 2;
  // The scales of a unit's steps: of this thread's two tokens, times those of the rows where these are one or
  // two. Read before the block sums are there, so that their latency is not on the way of the next.
  template <int kSplit>
  struct Scales {
    float low[kSpan][kEnds<kSplit>], high[kSpan][kEnds<kSplit>];
  };
  template <int kSplit>
  __device__ void read_scales(Scales<kSplit>& read, int unit, int first) {
    auto& of_rows = row_scales_of(unit);
    if (kSplit != 0 && (Shape::kGated || unit == 0) && first % 32 == 0)
      of_rows.template hold<kEnds<kSplit>>(first, task.steps, lane);
    const float* const token_scales = ring.scales.of_step(scale_step) + token(unit) * kScaleBoxSteps;
#pragma unroll
    for (int i = 0; i < kSpan; ++i) {
      const float low = token_scales[i];
      const float high = token_scales[8 * kScaleBoxSteps + i];
#pragma unroll
      for (int end = 0; end < kEnds<kSplit>; ++end) {
        float weight = 1.0F;
        if constexpr (kSplit != 0) weight = __shfl_sync(0xffffffffU, of_rows.held[end], (first + i) % 32);
        read.low[i][end] = __fmul_rn(low, weight);
        read.high[i][end] = __fmul_rn(high, weight);
      }
    }
    if (unit == kPerGroup - 1) {
      __syncwarp();  // all lanes have read them before one of them says so for all
      scale_step += kSpan;
    }
  }
  // sums += block sums · scales, step by step in rising order.
  template <int kSplit>
  __device__ void add(const Blocks& blocks, int unit, int first, const Scales<kSplit>& scales) {
    auto& of_rows = row_scales_of(unit);
#pragma unroll
    for (int i = 0; i < kSpan; ++i) {
      if (i > 0 && first + i >= task.steps) break;
#pragma unroll
      for (int chunk = 0; chunk < Shape::kRowScales; ++chunk) {
        const int end = kSplit > 0 && chunk >= kSplit ? 1 : 0;
        float low = scales.low[i][end];
        float high = scales.high[i][end];
        if constexpr (kSplit == kSome) {
          if (chunk >= of_rows.split) low = scales.low[i][1], high = scales.high[i][1];
        }
        if constexpr (kSplit == 0) {
          const float weight = __shfl_sync(0xffffffffU, of_rows.of_next_step, chunk);
          low = __fmul_rn(low, weight);
          high = __fmul_rn(high, weight);
        }
#pragma unroll
        for (int j = chunk * 8; j < chunk * 8 + 8; j += 4) {
          sums[unit][j] = __fmaf_rn(blocks[i][j], low, sums[unit][j]);
          sums[unit][j + 1] = __fmaf_rn(blocks[i][j + 1], low, sums[unit][j + 1]);
          sums[unit][j + 2] = __fmaf_rn(blocks[i][j + 2], high, sums[unit][j + 2]);
          sums[unit][j + 3] = __fmaf_rn(blocks[i][j + 3], high, sums[unit][j + 3]);
        }
      }
      if (kSplit == 0 && unit == kPerGroup - 1 && first + i + 1 < task.steps)
        of_rows.of_next_step = of_rows.own[first + i + 1];
    }
  }

  template <int kSplit>
  struct Unit {
    Blocks blocks;
    Scales<kSplit> scales;
  };
  // Where kShort is not, and so a stage is one step: from where the products of a unit, of tile kTile of
  // stage `first`, are there to where those of the next are under way (kMore: there is one). Between the end
  // of products and the beginning of the next there is nothing but what must be: the other warpgroup's
  // products take no longer than that.
  static_assert(Shape::kShort || kSpan == 1);
  template <int kSplit, int kTile, bool kMore>
  __device__ void end(Unit<kSplit>& unit, Unit<kSplit>& next_unit, int first) {
    constexpr bool kEndsStage = kTile == kPerGroup - 1;
    constexpr int kNext = kEndsStage ? 0 : kTile + 1;
    pin(unit.blocks[0]);
    if (kEndsStage) release(at.place.stage);
    if constexpr (kSets == 1) add<kSplit>(unit.blocks, kTile, first, unit.scales);
    if (kEndsStage) at = next;
    if constexpr (kMore) {
      if (kEndsStage && !ready) ring.wait_until_there(at.full, at.place.parity);
      begin(next_unit.blocks, kNext);
      read_scales<kSplit>(next_unit.scales, kNext, kEndsStage ? first + 1 : first);
      if (kNext == kPerGroup - 1) look_ahead();
    }
    if constexpr (kSets == 2) add<kSplit>(unit.blocks, kTile, first, unit.scales);
  }
  // Bound by memory: one copy of everything, for between two layers of a step a multiprocessor has forgotten
  // the instructions, and fetches them again while nothing else can be done.
  template <int kSplit>
  __device__ void sum_short() {
    Unit<kSplit> unit;
    for (int first = 0; first < task.stages * kSpan; first += kSpan) {
      if (!ready) ring.wait_until_there(at.full, at.place.parity);
      begin(unit.blocks, 0);
      read_scales<kSplit>(unit.scales, 0, first);
      look_ahead();
      wgmma_wait<0>();
#pragma unroll
      for (int i = 0; i < kSpan; ++i) pin(unit.blocks[i]);
      release(at.place.stage);
      add<kSplit>(unit.blocks, 0, first, unit.scales);
      at = next;
    }
  }
  template <int kSplit, typename Store>
  __device__ void sum(const Store& store) {
    if constexpr (Shape::kShort) return sum_short<kSplit>();
    Unit<kSplit> units[kSets];
    Unit<kSplit>& one = units[0];
    Unit<kSplit>& other = units[kSets - 1];
    ring.wait_until_there(at.full, at.place.parity);
    begin(one.blocks, 0);
    read_scales<kSplit>(one.scales, 0, 0);
    if (kPerGroup == 1) look_ahead();
    wgmma_wait<0>();
    // Two units at a time: of a stage, or of two.
    constexpr int kTile = kPerGroup - 1;  // of the second
    constexpr int kSteps = kPerGroup == 2 ? 1 : 2;
    const int steps = task.stages;
    int first = 0;
    for (; first < steps - kSteps; first += kSteps) {
      end<kSplit, 0, true>(one, other, first);
      wgmma_wait<0>();
      end<kSplit, kTile, true>(other, one, first + kSteps - 1);
      wgmma_wait<0>();
    }
    if (kPerGroup == 1 && first == steps - 1) return end<kSplit, 0, false>(one, other, first);
    end<kSplit, 0, true>(one, other, first);
    if constexpr (Shape::kStoresEarly) store(0);
    wgmma_wait<0>();
    end<kSplit, kTile, false>(other, one, first + kSteps - 1);
  }
  // Of the tile that begin_tile() has prepared; where kStoresEarly, store(0) stores the first 64 tokens'.
  // Where a row of scales ends inside a tile depends on where the tile begins, at a multiple of kRows: a loop
  // for each place, where these are few.
  template <int kSplit = Shape::kRowScales, typename Store>
  __device__ void sum_tile(const Store& store) {
    constexpr int kStep = std::gcd(kRows, static_cast<int>(kBlock)) / 16;
    constexpr int kBefore = (kSplit - 1) / kStep * kStep;
    if constexpr (Shape::kGated) {
      sum<kSplit>(store);  // gate and up each have whole blocks of scales
    } else if constexpr (kSplit == kSome) {
      if (row_scales[0].split > 0) return sum<kSome>(store);
      sum<0>(store);
    } else {
      if (row_scales[0].split == kSplit) return sum<kSplit>(store);
      if constexpr (kStep == 1)
        return sum_tile<kSome>(store);
      else if constexpr (kBefore == 0)
        sum<0>(store);
      else
        sum_tile<kBefore>(store);
    }
  }
};

template <typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    tall_gemm_kernel(const __grid_constant__ GemmTask task) {
  extern __shared__ std::uint8_t shared[];
  const TallRing<Shape> ring(task, shared);
  const int warp = __shfl_sync(0xffffffffU, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto sync = [&task] {
    if (!Shape::kGated || task.cluster == 1) return __syncthreads();
    cluster_arrive();
    cluster_wait();
  };
  const int role = warp - Shape::kGroups * 4;  // of a warp that does not multiply
  const bool seated = task.seats.table.gpcs > 0;
  const bool takes_seat = seated && role == 2 && lane == 0;
  if (threadIdx.x == 0) ring.init(task);
  if (takes_seat) ring.seat() = take_seat(task.seats);
  sync();
  const TileOrder order = seated ? TileOrder(task, ring.seat()) : TileOrder(task);

  if (role >= 0) {
    if constexpr (Shape::kGroups > 1) give_registers<Shape::kCopyRegisters>();
    if (role == 0) {
      if (lane == 0) ring.stream_weights(order);
    } else if (role == 1) {
      if (lane == 0) prefetch_map(task.token_map), prefetch_map(task.scale_map);
      wait_for_previous_kernel();
      if (lane == 0) ring.stream_tokens(order);
    } else if (role == 2) {
      if (takes_seat) leave_seats(task.seats);  // before the next kernel may take them
      wait_for_previous_kernel();
      if (lane == 0) let_next_kernel_start();
    }
  } else {
    if constexpr (Shape::kGroups > 1) take_registers<Shape::kMultiplyRegisters>();
    TallMultiplier<Shape> multiplier(task, ring, warp, lane);
    const TallResults<Shape> results{task, ring.results, warp, lane};
    const auto look_up = [&](int item) {
      if (item < order.count()) order.tile(item, [&](int row_tile, int) { multiplier.look_up(row_tile); });
    };
    look_up(order.first);
    if (order.first < order.count()) multiplier.prefetch();
    for (int item = order.first; item < order.count(); item += order.step())
      order.tile(item, [&](int row_tile, int token_tile) {
        multiplier.begin_tile(row_tile);
        look_up(item + order.step());
        const auto store = [&](int unit) {
          results.store(multiplier.sums[unit], unit, multiplier.row, token_tile);
        };
        multiplier.sum_tile(store);
        multiplier.prefetch();
        if constexpr (Shape::kGated)
          results.store_gated(multiplier.sums, row_tile, token_tile * Shape::kTokens + multiplier.token(0));
        else
          store(Shape::kPerGroup - 1);
      });
    wait_for_stores();  // shared memory is the next block's then
  }
  if (Shape::kGated && task.cluster > 1) {  // the other may still write to this block's shared memory
    __syncwarp();
    sync();
  }
}

}  // namespace octavo::cuda
