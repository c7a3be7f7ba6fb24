// How a linear layer's GEMM is cut into blocks of threads: a pure function of its shape, so that it can be
// tested without a GPU. No choice here changes a bit of a result (see gemm.h): a plan is about speed only.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace octavo::cuda {

inline constexpr int kStepBytes = 128;  // of a row
inline constexpr int kMaxStages = 48;   // of a ring
// Of a block's barriers: up to four a stage. Tall kernels have the block's seat there, too.
inline constexpr std::size_t kBarrierBytes = 4 * 64 * 8;

// A step is kStepBytes of a row. A stage of the rings holds several, so that what a warp does once a stage
// (waiting, giving back, addresses) is little beside the stage's own work. The limits are registers, which
// hold the block sums of all its steps in FP8, and that rings still have several stages.
constexpr int narrow_steps(int tokens, int groups) {
  if (groups == 4 || tokens == 128) return 1;
  return tokens == 64 ? 2 : 4;
}
constexpr int tall_steps(int rows_of_unit) { return rows_of_unit <= 64 ? 4 : 1; }
// A tall tile's results leave in boxes of 64 tokens × so many of a warpgroup's rows.
constexpr int result_box(int rows_of_unit) {
  for (const int rows : {64, 56, 48})
    if (rows_of_unit % rows == 0) return rows;
  return 32;
}
inline constexpr int kMinStages = 2;

// Narrow: the tokens' scales are held for so many 128-column blocks, twice.
inline constexpr int kScaleStages = 2;
constexpr int scale_steps(int tokens) { return tokens == 128 ? 16 : 32; }
// Tall: they come in boxes of so many blocks, each together with the first stage that needs it, into one of
// so many places in turn.
inline constexpr int kScaleBoxSteps = 4;
inline constexpr int kScaleBoxes = 4;

// A block of threads computes `rows` weight rows × `tokens` tokens over all of K.
//
// Narrow (gemm_kernel.cuh): the weight rows take the 64-row side of the matrix instruction; where `rows` is
// not a multiple of 64 the last instruction works on rows that are thrown away, which costs a memory-bound
// kernel nothing and lets any N be dealt out evenly to the multiprocessors. Tall (fp8_gemm_tall.cuh, FP8
// only): the tokens take it.
struct GemmPlan {
  bool tall = false;
  int tokens = 0;     // of a tile: 8, 16, 32, 64 or 128; tall: 64, 128 or 256
  int groups = 0;     // warpgroups that multiply: 1, 2 or 4; tall: 1 or 2
  int per_group = 0;  // 64-row tiles a warpgroup: 1, or 2; tall: units (TallShape)
  int rows = 0;       // weight rows of a tile: a multiple of 16; narrow: at most 64 · groups · per_group
  // Gated: blocks of threads of neighbouring tokens that share the weights' loads, each bringing its part to
  // all.
  int cluster = 1;
  // Of the rings: what fits ahead of the tensor cores. Tall: equal.
  int weight_stages = 0;
  int token_stages = 0;
  // Tall: the tile's rows are 128 of gate and 128 of up, whose product is the result.
  bool gated = false;

  // Tall: that a matrix instruction takes.
  int rows_of_unit() const { return gated ? rows / 2 : rows * (tokens / 64 / per_group) / groups; }
  // Of a stage.
  int steps() const { return tall ? tall_steps(rows_of_unit()) : narrow_steps(tokens, groups); }
  std::size_t weight_stage_bytes() const { return static_cast<std::size_t>(rows * steps()) * 128; }
  std::size_t token_stage_bytes() const { return static_cast<std::size_t>(tokens * steps()) * 128; }
  std::size_t scale_bytes() const {
    const int held = tall ? kScaleBoxes * kScaleBoxSteps : kScaleStages * scale_steps(tokens);
    return static_cast<std::size_t>(tokens * held) * sizeof(float);
  }
  // What waits to be stored.
  std::size_t result_bytes() const {
    return tall && !gated ? static_cast<std::size_t>(tokens * rows) * 2 : 0;
  }
  std::size_t shared_bytes() const;
  // Tall: the stages of the rings that a tile of so many steps may use. More would have a box of scales
  // replaced that is still read, where tiles are short and bring many.
  int stages_for(int tile_steps) const;
  // Tokens that one copy brings. Where one tile holds them all, no more than there are: copies of rows beyond
  // the matrix take several times as long.
  int token_box(std::int64_t m) const { return m < tokens ? static_cast<int>(m) : tokens; }
  // Tiles of rows, of so many bytes each, that take turns over the tokens: at least so many that about as
  // many rows are read at a time as tokens and both come from L2; more where L2 keeps their weights until the
  // next tokens, which are then read fewer times. Up to 2048 tokens it is one: all tokens take turns over the
  // weights.
  int row_band(std::int64_t m, std::int64_t row_bytes) const {
    constexpr std::int64_t kKept = std::int64_t{16} << 20;  // bytes, of 50 MiB that two halves hold twice
    return m <= 2048 ? 1 : static_cast<int>(std::max<std::int64_t>(2048, kKept / row_bytes) / rows);
  }
  std::int64_t row_tiles(std::int64_t out) const { return (out + rows - 1) / rows; }
  std::int64_t token_tiles(std::int64_t m) const { return (m + tokens - 1) / tokens; }
};

// visit(row tile, token tile) with the n-th tile that is computed: those of a band of rows side by side, then
// the next tokens'; after all tokens the next band (GemmPlan::row_band()).
template <typename Visit>
constexpr void visit_tile(int n, int row_tiles, int token_tiles, int row_band, const Visit& visit) {
  int row = n;
  int token = 0;
  if (token_tiles > 1) {
    const int band = n / (row_band * token_tiles);
    const int left = row_tiles - band * row_band;
    const int width = row_band < left ? row_band : left;
    const int inside = n - band * row_band * token_tiles;
    row = band * row_band + inside % width;
    token = inside / width;
  }
  visit(row, token);
}

inline constexpr int kMaxCluster = 2;
// The tall kernels there are, by tokens and then rows of a tile, and what a step of 128 columns takes, in
// nanoseconds, on an H200 whose multiprocessors all run it (2026-11-27; some have become a few percent
// faster; from `gemm_gpu_bench tune` and `gated`: a layer's time over its rounds of tiles and their steps).
struct TallKernel {
  int tokens, rows, groups, per_group;
  double step_ns;
  bool gated = false;
};
inline constexpr std::array<TallKernel, 9> kTallKernels = {{{64, 32, 1, 1, 131},
                                                            {64, 48, 1, 1, 165},
                                                            {64, 64, 1, 1, 194},
                                                            {64, 128, 1, 1, 275},
                                                            {64, 224, 2, 1, 489},
                                                            {128, 96, 2, 1, 335},
                                                            {128, 128, 2, 1, 420},
                                                            {128, 192, 2, 1, 575},
                                                            {256, 128, 2, 2, 760}}};
inline constexpr std::array<TallKernel, 2> kTallGatedKernels = {
    {{64, 256, 1, 2, 500, true}, {128, 256, 2, 2, 760, true}}};
GemmPlan tall_plan(const TallKernel& kernel, int cluster = 1);  // more than 1: gated only

inline constexpr std::size_t kMaxSharedBytes = 227 * 1024;  // of a block of threads, Hopper

// The plan for y[m, out] = x[m, in] · w[out, in]ᵀ on a device of `multiprocessors`.
GemmPlan plan_fp8_gemm(std::int64_t out, std::int64_t in, std::int64_t m, int multiprocessors = 132);
GemmPlan plan_narrow_gemm(std::int64_t out, std::int64_t m, int multiprocessors = 132);  // of either, m <= 64
// Of a layer whose rows are gate's, then up's: where their product can be the result and, above 16 tokens, is
// sooner than by a kernel after.
bool takes_gated(std::int64_t out, std::int64_t in, std::int64_t m, int multiprocessors = 132);
GemmPlan plan_gated_gemm(std::int64_t out, std::int64_t in, std::int64_t m, int multiprocessors = 132);
// Weight rows of a tile of a chain's linear layer (fp8_chain.h): 32, 48 or 64.
int chain_rows(std::int64_t out, int multiprocessors = 132);
GemmPlan plan_bf16_gemm(std::int64_t out, std::int64_t in, std::int64_t m, int multiprocessors = 132);
// Whether the tiles are dealt out by `seats` (seat_table.h): one for each multiprocessor, or there are none.
bool takes_seats(const GemmPlan& plan, std::int64_t out, std::int64_t m, int seats,
                 int multiprocessors = 132);

}  // namespace octavo::cuda
