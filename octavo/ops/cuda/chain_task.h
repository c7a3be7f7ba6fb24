// What the host hands to the kernel of a chain.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "octavo/base/dtype.h"
#include "octavo/ops/cuda/fp8_chain.h"

namespace octavo::cuda {

// Two results that are not there yet: NaNs that no result is rounded to (that of cvt.rn.bf16x2 is 0x7fff).
inline constexpr std::uint32_t kNotYet = 0xffffffffU;

enum class LinkKind : std::uint8_t { kLinear, kGated, kNorm };

struct ChainTask {
  // A tile is `rows` weight rows and all tokens. Of a gated one these are 128 of gate and, out / 2 further
  // down, 128 of up, which come in halves.
  struct Link {
    CUtensorMap weight_map;  // boxes of `box_rows` rows × 128 bytes
    CUtensorMap token_map;   // boxes of token_rows × 128 bytes
    const float* weight_scales;
    const std::int32_t* scale_rows;
    const float* token_scales;
    const float* bias;
    bf16* y;
    std::int64_t y_stride;
    std::uint8_t* gated;
    float* gated_scales;
    // Of a norm; its result is `gated` and gated_scales.
    float* residual;
    const float* norm_weight;
    float eps;
    int cols;
    LinkKind kind;
    bool pow2;
    bool whole;       // K is a multiple of 128: a copy brings a stage
    int out, steps;   // N, and 128-column blocks of K
    int scale_pitch;  // of token_scales
    int rows, box_rows;
    int tiles;
    int span;   // steps of a stage
    int parts;  // that are counted when they are done, where the next link waits for that
    bool awaited;
  };
  Link links[kMaxChainLinks];
  int count;
  int tokens;
  int token_rows;        // that a copy of tokens brings, `tokens` or more: 8 or 16
  std::uint32_t* state;  // [kMaxChainLinks] parts done, then blocks that have left
  bf16* handover;        // [tokens, cols] of what the next norm adds, each kNotYet until it is there
};

// Of shared memory; a stage of weights holds 128 rows of a step, or fewer rows of several.
inline constexpr std::uint32_t kChainWeightStage = 128 * 128;
inline constexpr int kChainSpan = 4;  // most steps of a stage

// Of task.token_rows 8 or 16.
void launch_chain(const ChainTask& task, int blocks, bool early, cudaStream_t stream);

}  // namespace octavo::cuda
