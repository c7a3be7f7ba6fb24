// How a linear layer's GEMM is cut into blocks of threads: a pure function of its shape, so that it can be
// tested without a GPU. No choice here changes a bit of a result (see gemm.h): a plan is about speed only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace octavo::cuda {

// The tokens' scales are held for so many 128-column blocks, twice.
inline constexpr int kScaleStages = 2;
constexpr int scale_steps(int tokens) { return tokens == 128 ? 16 : 32; }

// A block of threads computes `rows` weight rows × `tokens` tokens over all of K. The weight rows take the
// 64-row side of the matrix instruction; where `rows` is not a multiple of 64 the last instruction works on
// rows that are thrown away, which costs a memory-bound kernel nothing and lets any N be dealt out evenly to
// the multiprocessors.
struct GemmPlan {
  int tokens = 0;     // of a tile: 8, 16, 32, 64 or 128
  int groups = 0;     // warpgroups that multiply: 1, 2 or 4
  int per_group = 0;  // 64-row tiles a warpgroup: 1, or 2 (tokens 128, groups 2)
  int rows = 0;       // weight rows of a tile: a multiple of 16, at most 64 · groups · per_group
  // Blocks of threads that share loads, each bringing its part to all: row_cluster of neighbouring rows share
  // the tokens', token_cluster of neighbouring tokens the weights'.
  int row_cluster = 1;
  int token_cluster = 1;
  int weight_stages = 0;  // 128-column blocks of weights that fit in the ring ahead of the tensor cores
  int token_stages = 0;   // the same for the tokens

  // How much of the next layer's weight is fetched into L2 when this kernel has asked for all of its own:
  // what the memory can deliver while this kernel ends and the next one begins.
  std::int64_t next_bytes = std::int64_t{12} << 20;

  std::size_t weight_stage_bytes() const { return static_cast<std::size_t>(rows) * 128; }
  std::size_t token_stage_bytes() const { return static_cast<std::size_t>(tokens) * 128; }
  std::size_t scale_bytes() const {
    return static_cast<std::size_t>(kScaleStages * tokens * scale_steps(tokens)) * sizeof(float);
  }
  int cluster() const { return row_cluster * token_cluster; }
  std::size_t shared_bytes() const;
  std::int64_t row_tiles(std::int64_t out) const { return (out + rows - 1) / rows; }
  std::int64_t token_tiles(std::int64_t m) const { return (m + tokens - 1) / tokens; }
};

// An FP8 kernel keeps two chunks of so many 128-column blocks under way: while the tensor cores sum one, the
// other is added to the result. 0: registers do not allow it; one block at a time. Nothing of a chunk's
// stages is given back before its end, so a ring of fewer than two chunks would never turn.
constexpr int blocks_of_chunk(int tokens, int groups, int per_group) {
  if (per_group == 2 || (groups == 4 && tokens == 64)) return 0;
  if (tokens == 128 || (groups == 4 && tokens == 32)) return 1;
  return tokens >= 32 || groups == 4 ? 2 : 4;
}
constexpr int min_stages(int tokens, int groups, int per_group) {
  const int chunk = blocks_of_chunk(tokens, groups, per_group);
  return chunk == 0 ? 2 : 2 * chunk;
}

inline constexpr std::size_t kMaxSharedBytes = 227 * 1024;  // of a block of threads, Hopper

// The plan for y[m, out] = x[m, in] · w[out, in]ᵀ on a device of `multiprocessors`. `in` counts bytes of a
// row: a bf16 layer's is twice its inputs.
GemmPlan plan_gemm(std::int64_t out, std::int64_t in, std::int64_t m, int multiprocessors = 132);

}  // namespace octavo::cuda
