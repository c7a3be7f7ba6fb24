// What becomes of a tile's sums in the FP8 GEMM for many tokens: results in bf16, or, gated, the product of
// two halves, quantized.
#pragma once

#include "octavo/ops/cuda/silu.cuh"
#include "octavo/ops/cuda/tall_rings.cuh"
#include "octavo/quant/cuda/group_quantizer.cuh"

namespace octavo::cuda {

// For one warp of the multiplying warpgroups. Of each 64-token tile a lane has the tokens lane / 4 and eight
// further down of the warp's sixteen, and of every eight of the warpgroup's rows, a chunk, two: four sums.
template <typename Shape>
struct TallResults {
  static constexpr int kRows = Shape::kRows;
  static constexpr int kPerGroup = Shape::kPerGroup;
  static constexpr int kChunks = kRows / 8;
  using TileSums = float[kRows / 2];

  const GemmTask& task;
  std::uint32_t results;  // where they wait to be stored
  int warp, lane;

  // Whether there is a bias is asked once, not for every pair of sums.
  __device__ void add_bias(TileSums& sums, int row) const {
    if (task.bias == nullptr) return;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int at = row + chunk * 8 + lane % 4 * 2;
      const float2 bias = at < task.out ? *reinterpret_cast<const float2*>(task.bias + at) : float2{0, 0};
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[chunk * 4 + i] = __fadd_rn(sums[chunk * 4 + i], i % 2 == 0 ? bias.x : bias.y);
    }
  }

  // Through shared memory, from where tensor copies take the results while the next tile is multiplied: of
  // the warpgroup's 64-token tile t, in rising order.
  __device__ void store(TileSums& sums, int t, int row, int token_tile) const {
    const auto sync_group = [&] { sync_threads(1 + warp / 4, 128); };
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

  // silu(gate) · up of gate's and up's sums, quantized: 128 columns of the result, which are one group of a
  // token and of which a thread has every fourth pair, for `token` and the one eight further down.
  __device__ void store_gated(TileSums (&sums)[2], int row_tile, std::int64_t token) const {
    const int row = row_tile * kRows;
    add_bias(sums[0], row);
    add_bias(sums[1], row + task.out / 2);
    const std::int64_t cols = task.out / 2;
    // Of few tokens one after the other by the same instructions, which a multiprocessor has to fetch.
    constexpr int kAtOnce = Shape::kTokens > 64 ? 2 : 1;
#pragma unroll kAtOnce
    for (int h = 0; h < 2; ++h, token += 8) {
      std::uint32_t pairs[kChunks];
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        // Of the token whose turn it is; then it is the other's.
        const auto pair = [&](TileSums& of) {
          const std::uint32_t its = pack_bf16(of[chunk * 4], of[chunk * 4 + 1]);
          of[chunk * 4] = of[chunk * 4 + 2];
          of[chunk * 4 + 1] = of[chunk * 4 + 3];
          return its;
        };
        const std::uint32_t gate = pair(sums[0]);
        const std::uint32_t up = pair(sums[1]);
        pairs[chunk] = pack_bf16(silu(low_bf16(gate)) * low_bf16(up), silu(high_bf16(gate)) * high_bf16(up));
      }
      const bool live = token < task.tokens;
      const float scale = write_group(pairs, task.gated_pow2, live, task.gated + token * cols + row);
      if (lane % 4 == 0 && live) task.gated_scales[token * scale_pitch(cols) + row_tile] = scale;
    }
  }
};

}  // namespace octavo::cuda
