// The FP8 GEMM for many tokens, warp-specialized and persistent like gemm_kernel.cuh's, with the sides
// exchanged: the tokens take the 64-row side of wgmma, the weight rows the other. A thread then meets two
// tokens' scales and, in a layer whose tile has one row of scales, one of the weight's, so that adding a
// block's sums to the result costs hardly more than its multiply-adds; and tiles of any multiple of 16 weight
// rows deal a layer out evenly without waste. Products, block sums and the order of their addition are
// gemm_kernel.cuh's, and so are the bits.
#pragma once

#include <numeric>

#include "octavo/ops/cuda/silu.cuh"
#include "octavo/ops/cuda/tall_rings.cuh"
#include "octavo/quant/cuda/scaling.cuh"
#include "octavo/quant/cuda/vector_io.cuh"

namespace octavo::cuda {

// The scales of a warpgroup's kCount times 16 rows, in the registers of a warp. Where these share one row of
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
      if (first + 32 + lane < steps) next[end] = of[end][first + 32 + lane];
    }
  }
};

// One warp of the multiplying warpgroups: sixteen tokens of each of its 64-token tiles.
template <typename Shape>
struct TallMultiplier {
  static constexpr int kRows = Shape::kRows;
  static constexpr int kPerGroup = Shape::kPerGroup;
  static constexpr int kSpan = Shape::kSpan;
  using Sums = float[kRows / 2];  // a thread's share of a 64-token tile
  // What is multiplied in one go, a unit: a stage, or one of a stage's two 64-token tiles. Where no other
  // warpgroup keeps the tensor cores busy meanwhile, and registers allow, the next unit's products are under
  // way while a unit's sums are added.
  static constexpr int kSets = Shape::kGroups == 1 && kSpan == 1 ? 2 : 1;
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
  StageRelease release;
  Stage at, next;                // which is multiplied, and the one after it
  bool ready = false;            // the one after it is there
  std::uint32_t scale_step = 0;  // of the scales' ring, from the kernel's beginning
  Sums sums[kPerGroup];
  int row;  // the warpgroup's first
  RowScales<Shape::kRowScales> row_scales;

  __device__ TallMultiplier(const GemmTask& task, const TallRing<Shape>& ring, int warp, int lane)
      : task(task), ring(ring), warp(warp), lane(lane), release(ring.empty, lane, task.cluster) {
    // Through a shuffle: it would otherwise be found out again every stage, while the tensor cores wait.
    const auto keep = [](std::uint32_t address) {
      return __shfl_sync(0xffffffffU, static_cast<std::uint32_t>(matrix_descriptor(address)), 0);
    };
    first_tokens =
        keep(ring.tokens(0) + static_cast<std::uint32_t>(token_group() * kPerGroup) * (64 * kStepBytes));
    first_rows = keep(ring.weights(0) + static_cast<std::uint32_t>(row_group()) * (kRows * kStepBytes));
    at = stage_at({});
  }

  __device__ int token_group() const { return warp / 4 % Shape::kTokenGroups; }
  __device__ int row_group() const { return warp / 4 / Shape::kTokenGroups; }
  // In the block's tile: this thread's first token of its 64-token tile t; the other is eight further down.
  __device__ int token(int t) const {
    return (token_group() * kPerGroup + t) * 64 + warp % 4 * 16 + lane / 4;
  }

  __device__ int first_row(int row_tile) const {
    if constexpr (Shape::kGated) return row_tile * kRows + row_group() * (task.out / 2);
    return row_tile * Shape::kTileRows + row_group() * kRows;
  }
  __device__ void begin_tile(int row_tile) {
    row = first_row(row_tile);
#pragma unroll
    for (int t = 0; t < kPerGroup; ++t)
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) sums[t][i] = 0;
    row_scales.begin_tile(task);
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
    ready = is_done_now(next.full, place.parity);
  }

  // Begins the block sums of a 64-token tile of stage `at` (beyond K they are zero).
  __device__ void begin(Blocks& blocks, int tile) const {
#pragma unroll
    for (int i = 0; i < kSpan; ++i) pin(blocks[i]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSpan; ++i) {
      const std::uint32_t a = at.tokens + (i * Shape::kTokenStep + tile * 64 * kStepBytes) / 16;
      const std::uint32_t b = at.rows + i * (Shape::kWeightStep / 16);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        wgmma_e4m3<kRows>(blocks[i], matrix_descriptor_of(a + k * 2), matrix_descriptor_of(b + k * 2), k > 0);
    }
    wgmma_commit();
  }

  // kSplit: of a warpgroup's rows, in sixteens, how many share a row of scales before the rest share another:
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
  __device__ void read_scales(Scales<kSplit>& read, int tile, int first) {
    const std::uint32_t stage = scale_step / kTallScaleSteps % kScaleStages;
    if (tile == 0) {
      if (first % kTallScaleSteps == 0)
        wait(ring.scales.full + 8 * stage, scale_step / (kTallScaleSteps * kScaleStages) % 2);
      if (kSplit != 0 && first % 32 == 0) row_scales.template hold<kEnds<kSplit>>(first, task.steps, lane);
    }
    const float* const token_scales = ring.scales.of_step(scale_step) + token(tile) * 4;
#pragma unroll
    for (int i = 0; i < kSpan; ++i) {
      const float low = token_scales[i];
      const float high = token_scales[i + 32];
#pragma unroll
      for (int end = 0; end < kEnds<kSplit>; ++end) {
        float weight = 1.0F;
        if constexpr (kSplit != 0) weight = __shfl_sync(0xffffffffU, row_scales.held[end], (first + i) % 32);
        read.low[i][end] = __fmul_rn(low, weight);
        read.high[i][end] = __fmul_rn(high, weight);
      }
    }
    if (tile < kPerGroup - 1) return;
    const std::uint32_t read_so_far = scale_step % kTallScaleSteps + kSpan;
    const bool done = read_so_far == kTallScaleSteps || first + kSpan == task.stages * kSpan;
    if (done) {
      __syncwarp();
      if (lane == 0) arrive(ring.scales.empty + 8 * stage);
    }
    scale_step += done ? kTallScaleSteps - (read_so_far - kSpan) : kSpan;
  }
  // sums += block sums · scales, step by step in rising order.
  template <int kSplit>
  __device__ void add(const Blocks& blocks, int tile, int first, const Scales<kSplit>& scales) {
#pragma unroll
    for (int i = 0; i < kSpan; ++i) {
      if (i > 0 && first + i >= task.steps) break;
#pragma unroll
      for (int chunk = 0; chunk < Shape::kRowScales; ++chunk) {
        const int end = kSplit > 0 && chunk >= kSplit ? 1 : 0;
        float low = scales.low[i][end];
        float high = scales.high[i][end];
        if constexpr (kSplit == kSome) {
          if (chunk >= row_scales.split) low = scales.low[i][1], high = scales.high[i][1];
        }
        if constexpr (kSplit == 0) {
          const float weight = __shfl_sync(0xffffffffU, row_scales.of_next_step, chunk);
          low = __fmul_rn(low, weight);
          high = __fmul_rn(high, weight);
        }
#pragma unroll
        for (int j = chunk * 8; j < chunk * 8 + 8; j += 4) {
          sums[tile][j] = __fmaf_rn(blocks[i][j], low, sums[tile][j]);
          sums[tile][j + 1] = __fmaf_rn(blocks[i][j + 1], low, sums[tile][j + 1]);
          sums[tile][j + 2] = __fmaf_rn(blocks[i][j + 2], high, sums[tile][j + 2]);
          sums[tile][j + 3] = __fmaf_rn(blocks[i][j + 3], high, sums[tile][j + 3]);
        }
      }
      if (kSplit == 0 && tile == kPerGroup - 1 && first + i + 1 < task.steps)
        row_scales.of_next_step = row_scales.own[first + i + 1];
    }
  }

  template <int kSplit>
  struct Unit {
    Blocks blocks;
    Scales<kSplit> scales;
  };
  // From where the products of a unit, of tile kTile of the stage that begins with step `first`, are there to
  // where those of the next are. Between the end of products and the beginning of the next there is nothing
  // but what must be: the other warpgroup's products take no longer than that.
  template <int kSplit, int kTile, bool kMore>
  __device__ void end(Unit<kSplit>& unit, Unit<kSplit>& next_unit, int first) {
    constexpr bool kEndsStage = kTile == kPerGroup - 1;
    constexpr int kNext = kEndsStage ? 0 : kTile + 1;
#pragma unroll
    for (int i = 0; i < kSpan; ++i) pin(unit.blocks[i]);
    if (kEndsStage) release(at.place.stage);
    if constexpr (kSets == 1) add<kSplit>(unit.blocks, kTile, first, unit.scales);
    if (kEndsStage) at = next;
    if constexpr (kMore) {
      if (kEndsStage && !ready) wait(at.full, at.place.parity);
      begin(next_unit.blocks, kNext);
      read_scales<kSplit>(next_unit.scales, kNext, kEndsStage ? first + kSpan : first);
      if (kNext == kPerGroup - 1) look_ahead();
    }
    if constexpr (kSets == 2) add<kSplit>(unit.blocks, kTile, first, unit.scales);
    if constexpr (kMore) wgmma_wait<0>();
  }
  // Bound by memory: one copy of everything, for between two layers of a step a multiprocessor has forgotten
  // the instructions, and fetches them again while nothing else can be done.
  template <int kSplit>
  __device__ void sum_short() {
    Unit<kSplit> unit;
    for (int first = 0; first < task.stages * kSpan; first += kSpan) {
      if (!ready) wait(at.full, at.place.parity);
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
  template <int kSplit>
  __device__ void sum() {
    if constexpr (Shape::kShort) return sum_short<kSplit>();
    Unit<kSplit> units[kSets];
    Unit<kSplit>& one = units[0];
    Unit<kSplit>& other = units[kSets - 1];
    wait(at.full, at.place.parity);
    begin(one.blocks, 0);
    read_scales<kSplit>(one.scales, 0, 0);
    if (kPerGroup == 1) look_ahead();
    wgmma_wait<0>();
    // Two units at a time: of a stage, or of two.
    constexpr int kTile = kPerGroup - 1;  // of the second
    constexpr int kSteps = kPerGroup == 2 ? kSpan : 2 * kSpan;
    const int steps = task.stages * kSpan;
    int first = 0;
    for (; first < steps - kSteps; first += kSteps) {
      end<kSplit, 0, true>(one, other, first);
      end<kSplit, kTile, true>(other, one, first + kSteps - kSpan);
    }
    if (kPerGroup == 1 && first == steps - kSpan) return end<kSplit, 0, false>(one, other, first);
    end<kSplit, 0, true>(one, other, first);
    end<kSplit, kTile, false>(other, one, first + kSteps - kSpan);
  }
  // Of the tile that begin_tile() has prepared. Where a row of scales ends inside a tile depends on where the
  // tile begins, at a multiple of kRows: a loop for each place, where these are few.
  template <int kSplit = Shape::kRowScales>
  __device__ void sum_tile() {
    constexpr int kStep = std::gcd(kRows, static_cast<int>(kBlock)) / 16;
    constexpr int kBefore = (kSplit - 1) / kStep * kStep;
    if constexpr (kSplit == kSome) {
      if (row_scales.split > 0) return sum<kSome>();
      sum<0>();
    } else {
      if (row_scales.split == kSplit) return sum<kSplit>();
      if constexpr (kStep == 1)
        return sum_tile<kSome>();
      else if constexpr (kBefore == 0)
        sum<0>();
      else
        sum_tile<kBefore>();
    }
  }

  // Without a bias +0, as everywhere: a sum of -0 has the same bits in every batch.
  __device__ void add_bias() {
#pragma unroll
    for (int chunk = 0; chunk < kRows / 8; ++chunk) {
      const int at = row + chunk * 8 + lane % 4 * 2;
      float2 bias = {0, 0};
      if (task.bias != nullptr && at < task.out) bias = *reinterpret_cast<const float2*>(task.bias + at);
#pragma unroll
      for (int t = 0; t < kPerGroup; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sums[t][chunk * 4 + i] = __fadd_rn(sums[t][chunk * 4 + i], i % 2 == 0 ? bias.x : bias.y);
    }
  }

  // Through shared memory, from where tensor copies take the results while the next tile is multiplied.
  __device__ void store(int token_tile) {
    const auto sync_group = [&] { asm volatile("bar.sync %0, 128;" ::"r"(1 + warp / 4) : "memory"); };
    const bool stores = warp % 4 == 0 && lane == 0;
    const std::uint32_t results = ring.results + static_cast<std::uint32_t>(warp / 4) * Shape::kResultBytes;
    add_bias();
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

  // --- Gated: one warpgroup has gate's rows, the other up's, and of both a thread the same columns of the
  // same two tokens. It gives one token's to the other warpgroup for what that has of the other token.
  static constexpr int kChunks = kRows / 8;  // of eight columns, of which a thread has two
  __device__ static void sync_groups() { asm volatile("bar.sync 3, 256;" ::: "memory"); }
  // Of a token's codes, of which a lane has two of each of four chunks, the eight of the chunk that is lane
  // % 4.
  __device__ uint2 gather_chunk(uint2 codes) const {
    const bool upper = lane % 4 >= 2;
    const bool odd = lane % 2 != 0;
    // Two chunks of this lane and of the one two further on or back, the lower lane's first.
    const std::uint32_t kept = upper ? codes.y : codes.x;
    const std::uint32_t got = __shfl_xor_sync(0xffffffffU, upper ? codes.x : codes.y, 2);
    const std::uint32_t low = upper ? got : kept;
    const std::uint32_t high = upper ? kept : got;
    // One chunk of both lanes' and of their neighbours.
    const std::uint32_t given = __byte_perm(low, high, odd ? 0x5410 : 0x7632);
    const std::uint32_t from = __shfl_xor_sync(0xffffffffU, given, 1);
    const std::uint32_t mine = __byte_perm(low, high, odd ? 0x7632 : 0x5410);
    return odd ? uint2{__byte_perm(from, mine, 0x5410), __byte_perm(from, mine, 0x7632)}
               : uint2{__byte_perm(mine, from, 0x5410), __byte_perm(mine, from, 0x7632)};
  }
  // silu(gate) · up of the tile, quantized: 128 columns of the result, which are one group of a token and of
  // which a thread has every fourth pair.
  __device__ void store_gated(int row_tile, int token_tile) {
    add_bias();
    const bool has_up = row_group() != 0;  // keeps the later token
    // Asked for anew, or all that follows from it would be found out once and kept from tile to tile, in
    // registers that the sums need.
    std::uint32_t thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    const std::uint32_t place = ring.results + thread % 128 * 4;
    const std::uint32_t given = place + (has_up ? Shape::kResultBytes : 0);
    const std::uint32_t taken = place + (has_up ? 0 : Shape::kResultBytes);
    constexpr std::uint32_t kChunk = 128 * 4;  // a pair for each thread
    const std::int64_t cols = task.out / 2;
#pragma unroll
    for (int tile = 0; tile < kPerGroup; ++tile) {
      std::uint32_t pairs[kChunks];
      sync_groups();  // what was given before has been taken
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const float* const sum = sums[tile] + chunk * 4;
        const std::uint32_t low = pack_bf16(sum[0], sum[1]);
        const std::uint32_t high = pack_bf16(sum[2], sum[3]);
        store_shared(given + chunk * kChunk, has_up ? low : high);
        pairs[chunk] = has_up ? high : low;
      }
      sync_groups();
      std::uint32_t largest = 0;
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const std::uint32_t other = load_shared(taken + chunk * kChunk);
        const std::uint32_t gate = has_up ? other : pairs[chunk];
        const std::uint32_t up = has_up ? pairs[chunk] : other;
        pairs[chunk] = pack_bf16(silu(low_bf16(gate)) * low_bf16(up), silu(high_bf16(gate)) * high_bf16(up));
        largest = max(largest, max(pairs[chunk] << 16 & 0x7fffffffU, pairs[chunk] & 0x7fff0000U));
      }
      largest = max(largest, __shfl_xor_sync(0xffffffffU, largest, 1));
      largest = max(largest, __shfl_xor_sync(0xffffffffU, largest, 2));
      const Scale scale = divide_scale(__uint_as_float(largest), task.gated_pow2);
      const auto quad = static_cast<int>(thread % 128 / 4);
      const std::int64_t at =
          token_tile * Shape::kTokens + tile * 64 + quad / 8 * 16 + quad % 8 + (has_up ? 8 : 0);
      std::uint8_t* const to = task.gated + at * cols + row_tile * kRows + thread % 4 * 8;
#pragma unroll
      for (int chunk = 0; chunk < kChunks; chunk += 4) {
        float values[8];
        unpack8({pairs[chunk], pairs[chunk + 1], pairs[chunk + 2], pairs[chunk + 3]}, values);
        const uint2 codes = gather_chunk(e4m3x8(values, scale.multiplier));
        if (at < task.tokens) *reinterpret_cast<uint2*>(to + chunk * 8) = codes;
      }
      if (thread % 4 == 0 && at < task.tokens)
        task.gated_scales[at * (cols / kBlock) + row_tile] = scale.scale;
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
      ring.scales.template stream<Shape::kScaleLanes>(task, (role - 2) * 32 + lane);
    }
  } else {
    if constexpr (Shape::kGroups > 1) take_registers<Shape::kMultiplyRegisters>();
    TallMultiplier<Shape> multiplier(task, ring, warp, lane);
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
        multiplier.begin_tile(row_tile);
        look_up(item + order.step());
        multiplier.sum_tile();
        multiplier.row_scales.prefetch(task, lane);
        if constexpr (Shape::kGated)
          multiplier.store_gated(row_tile, token_tile);
        else
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
