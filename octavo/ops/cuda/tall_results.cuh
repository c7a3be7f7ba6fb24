// What becomes of a tile's sums in the FP8 GEMM for many tokens: results in bf16, or, gated, the product of
// two halves, quantized.
#pragma once

#include "octavo/ops/cuda/silu.cuh"
#include "octavo/ops/cuda/tall_rings.cuh"
#include "octavo/quant/cuda/scaling.cuh"
#include "octavo/quant/cuda/vector_io.cuh"

namespace octavo::cuda {

// For one warp of the multiplying warpgroups. Of each 64-token tile a lane has the tokens lane / 4 and eight
// further down of the warp's sixteen, and of every eight of the warpgroup's rows, a chunk, two: four sums.
//
// Gated, one warpgroup has gate's rows and the other up's. A thread of each has the same columns of the same
// two tokens, and gives one token's to the other for what that has of the other token.
template <typename Shape>
struct TallResults {
  static constexpr int kRows = Shape::kRows;
  static constexpr int kPerGroup = Shape::kPerGroup;
  static constexpr int kChunks = kRows / 8;
  using TileSums = float[kRows / 2];

  const GemmTask& task;
  std::uint32_t results;  // where they wait to be stored
  int warp, lane;

  // Without a bias +0, as everywhere: a sum of -0 has the same bits in every batch. Whether there is one is
  // asked once, not for every pair of sums.
  __device__ void add_bias(TileSums& sums, int row) const {
    const auto add = [&](const auto& of_rows) {
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const float2 bias = of_rows(row + chunk * 8 + lane % 4 * 2);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sums[chunk * 4 + i] = __fadd_rn(sums[chunk * 4 + i], i % 2 == 0 ? bias.x : bias.y);
      }
    };
    if (task.bias == nullptr) return add([](int) { return float2{0, 0}; });
    add([&](int at) {
      return at < task.out ? *reinterpret_cast<const float2*>(task.bias + at) : float2{0, 0};
    });
  }

  // Through shared memory, from where tensor copies take the results while the next tile is multiplied: of
  // the warpgroup's 64-token tile t, in rising order.
  __device__ void store(TileSums& sums, int t, int row, int token_tile) const {
    const auto sync_group = [&] { asm volatile("bar.sync %0, 128;" ::"r"(1 + warp / 4) : "memory"); };
    const bool stores = warp % 4 == 0 && lane == 0;
    const std::uint32_t of_group = results + static_cast<std::uint32_t>(warp / 4) * Shape::kResultBytes;
    add_bias(sums, row);
    if (t == 0) {
      if (stores) wait_for_stores();
      sync_group();
    }
    // A lane's row of the 8×8 matrices: of tokens 0 to 7 and 8 to 15 of the warp's, of one chunk of eight
    // rows and of the next.
    const std::uint32_t token = warp % 4 * 16 + lane % 16;
    const int next = lane / 16;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; chunk += 2) {
      constexpr int kOfBox = Shape::kBoxRows / 8;
      const std::uint32_t box = (next != 0 ? chunk + 1 : chunk) / kOfBox + t * (kRows / Shape::kBoxRows);
      std::uint32_t place = (next != 0 ? chunk + 1 : chunk) % kOfBox;
      if constexpr (kOfBox == 8) place ^= token % 8;  // the map's swizzle
      std::uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[i] = pack_bf16(sums[chunk * 4 + i * 2], sums[chunk * 4 + i * 2 + 1]);
      store_matrices(of_group + box * Shape::kBoxBytes + token * (Shape::kBoxRows * 2) + place * 16, pairs);
    }
    fence_shared_copies();
    sync_group();
    if (stores) {
      const int first = token_tile * Shape::kTokens + (warp / 4 % Shape::kTokenGroups * kPerGroup + t) * 64;
#pragma unroll
      for (int i = 0; i < kRows; i += Shape::kBoxRows)
        if (first < task.tokens && row + i < task.out)
          store_box(task.y_map, row + i, first,
                    of_group + (t * kRows + i) / Shape::kBoxRows * Shape::kBoxBytes);
      commit_stores();
    }
  }

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
  // which a thread has every fourth pair; of the 64-token tile `t`.
  __device__ void store_gated(TileSums& sums, int t, int row, int row_tile, int token_tile) const {
    add_bias(sums, row);
    const bool has_up = warp >= 4;  // keeps the later token
    // Asked for anew, or all that follows from it would be found out once and kept from tile to tile, in
    // registers that the sums need.
    std::uint32_t thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    const std::uint32_t place = results + thread % 128 * 4;
    const std::uint32_t given = place + (has_up ? Shape::kResultBytes : 0);
    const std::uint32_t taken = place + (has_up ? 0 : Shape::kResultBytes);
    constexpr std::uint32_t kChunk = 128 * 4;  // a pair for each thread
    const std::int64_t cols = task.out / 2;
    std::uint32_t pairs[kChunks];
    sync_groups();  // what was given before has been taken
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const float* const sum = sums + chunk * 4;
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
        token_tile * Shape::kTokens + t * 64 + quad / 8 * 16 + quad % 8 + (has_up ? 8 : 0);
    std::uint8_t* const to = task.gated + at * cols + row_tile * kRows + thread % 4 * 8;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; chunk += 4) {
      float values[8];
      unpack8({pairs[chunk], pairs[chunk + 1], pairs[chunk + 2], pairs[chunk + 3]}, values);
      const uint2 codes = gather_chunk(e4m3x8(values, scale.multiplier));
      if (at < task.tokens) *reinterpret_cast<uint2*>(to + chunk * 8) = codes;
    }
    if (thread % 4 == 0 && at < task.tokens)
      task.gated_scales[at * scale_pitch(cols) + row_tile] = scale.scale;
  }
};

}  // namespace octavo::cuda
