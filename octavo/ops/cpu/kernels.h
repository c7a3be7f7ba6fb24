// The CPU kernels as a table of functions, one table an instruction set. Kernels are pure: they read and
// write what their task names, start no threads, and know nothing of batches or models.
#pragma once

#include <cstdint>

#include "octavo/base/cpu_features.h"
#include "octavo/base/dtype.h"
#include "octavo/ops/ops.h"

namespace octavo {

// Tiles [tile_begin, tile_end) of out[m, n] = Σ_k x[m, k] w[n, k] for all `tokens` rows. A tile is 16 weight
// rows.
struct LinearTask {
  const bf16* x = nullptr;  // [tokens, weight.in]
  const float* x_scales = nullptr;
  std::int64_t tokens = 0;
  const LinearWeight* weight = nullptr;
  std::int64_t tile_begin = 0;
  std::int64_t tile_end = 0;
  bf16* out_bf16 = nullptr;  // exactly one of the two outputs, [tokens, weight.out]
  float* out_f32 = nullptr;
};

struct RmsNormTask {
  float* residual = nullptr;    // [cols]
  const bf16* delta = nullptr;  // [cols] or null: added to residual first
  bool write_residual = false;
  const float* weight = nullptr;
  float eps = 0;
  std::int64_t cols = 0;
  bf16* out = nullptr;
};

struct RopeTask {
  bf16* head = nullptr;  // [head_dim], in place
  std::int64_t head_dim = 0;
  const float* norm = nullptr;  // [head_dim] or null
  float eps = 0;
  const float* cos = nullptr;  // [head_dim / 2] of the token's position
  const float* sin = nullptr;
};

// Queries of one KV head: `rows` (query, context length) pairs over one paged sequence.
struct AttentionTask {
  static constexpr int kMaxRows = 12;
  int rows = 0;
  const bf16* query[kMaxRows] = {};
  bf16* out[kMaxRows] = {};
  std::int64_t context[kMaxRows] = {};  // keys that the row sees: positions [0, context)
  const std::int32_t* blocks = nullptr;
  const bf16* keys = nullptr;  // of this KV head in block 0; a block is `block_stride` elements on
  const bf16* values = nullptr;
  std::int64_t block_stride = 0;
  std::int64_t head_dim = 0;
  std::int64_t padded_head_dim = 0;  // row stride of values
  float scale = 0;                   // 1 / sqrt(head_dim)
  float* scores = nullptr;           // scratch [rows, longest context rounded up to 64]
  std::int64_t scores_stride = 0;
};

struct Kernels {
  void (*linear)(const LinearTask&);
  void (*rms_norm)(const RmsNormTask&);
  void (*rope)(const RopeTask&);
  void (*attention)(const AttentionTask&);
  // out[i] = silu(gate[i]) * up[i]
  void (*silu_mul)(const bf16* gate, const bf16* up, std::int64_t count, bf16* out);
  // In groups of 128: values become E4M3 values (held as bf16), scales[g] their scale.
  void (*quantize_row)(bf16* row, std::int64_t cols, float* scales, bool pow2);
};

// The table of a supported instruction set. FP8 and bf16 results are the same bits for all but amx-bf16,
// whose tile multiply adds in another order.
const Kernels& kernels_for(Isa isa);

#if defined(__x86_64__)
// What amx-bf16 runs for a few tokens: the bits of its tiles, on AVX-512 without AMX.
namespace avx512 {
void linear_in_tile_order(const LinearTask& task);
}
#endif

// What to run where nobody asks for an instruction set (OCTAVO_ISA overrides it): one for steps of a few
// tokens, which are bound by decoding weights, and one for the rest, bound by multiplying. VDPBF16PS runs at
// full rate on some processors and at half the FMA rate or less on others, and both give the same bits, so a
// trial of some 100 µs decides. AMX adds in another order, so it takes all steps or none, and no trial
// decides it, whose outcome would change results: all, where the processor has it
// (docs/results/cpu-speed.md).
struct IsaChoice {
  Isa few_tokens;
  Isa many_tokens;
};
IsaChoice fastest_isas();

}  // namespace octavo
