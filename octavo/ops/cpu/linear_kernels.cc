// The linear layer: out = x · wᵀ for block-scaled FP8 and for bf16 weights.
//
// Weights lie in tiles of 16 rows, two columns interleaved (quant/code_layout.h). For each 128 columns of K a
// few tiles are decoded into a panel that stays in L1, and all tokens are run against it, so that the
// decoding is paid once; where tokens are few, tiles are decoded in registers. One token or a thousand go
// through the same arithmetic:
//
//   acc[n]   = Σ over the pairs of the block, odd column first, then even     (FP32; the order of VDPBF16PS)
//   total[n] = fma(acc[n], x_scale · w_scale, total[n])                        (bf16: total[n] + acc[n])
//
// Products of bf16 (and of E4M3) values are exact in FP32, so multiply-add and fused multiply-add agree, and
// portable, AVX2, AVX-512 and AVX512-BF16 give the same bits. AMX has a source of its own (linear_amx.cc) and
// is only close.
#include <algorithm>

#include "octavo/ops/cpu/kernels.h"
#include "octavo/ops/cpu/linear_blocks.h"

namespace octavo::OCTAVO_ISA_NS {
namespace {

// Tokens and tiles whose totals are held at once: a strip, 192 KiB of L2. Fewer tokens take wider strips, for
// which they are converted less often.
constexpr std::int64_t kTokenChunk = 256;
constexpr std::int64_t kStripTiles = 12;
constexpr std::int64_t kWidestStrip = 3 * kStripTiles;
static_assert(kStripTiles % kTiles == 0 && kStripTiles >= kPanelTiles);

std::int64_t strip_of(std::int64_t tokens) {
  return std::min(kWidestStrip, kTokenChunk / tokens * kStripTiles);
}

void write_output(const LinearTask& task, const float* totals, std::int64_t totals_stride,
                  std::int64_t token_begin, std::int64_t tokens, std::int64_t tile, int tiles) {
  const LinearWeight& weight = *task.weight;
  for (std::int64_t m = 0; m < tokens; ++m) {
    for (int t = 0; t < tiles; ++t) {
      const std::int64_t column = (tile + t) * kTileRows;
      V16 value = load(totals + m * totals_stride + t * 16);
      if (weight.bias != nullptr) value += load(weight.bias + column);
      const std::int64_t at = (token_begin + m) * weight.out + column;
      if (task.out_f32 != nullptr)
        store(task.out_f32 + at, value);
      else
        store(task.out_bf16 + at, value);
    }
  }
}

}  // namespace

void linear(const LinearTask& task) {
  const LinearWeight& weight = *task.weight;
  const bool fp8 = weight.precision == Precision::kFP8;
  const std::int64_t k_blocks = weight.scale_cols();
  const std::int64_t tile_elements = weight.in * kTileRows;  // `in` is even

  alignas(64) PanelElement panel[kPanelTiles * kPairs * kPairElements];
#if !OCTAVO_BF16_PANEL
  alignas(64) float x[kTokenChunk * kBlock];
#endif
  alignas(64) float totals[kTokenChunk * kStripTiles * 16];
  float w_scales[kPanelTiles];

  for (std::int64_t begin = 0; begin < task.tokens; begin += kTokenChunk) {
    const std::int64_t tokens = std::min(kTokenChunk, task.tokens - begin);
    const bool few = tokens <= kFewTokens;
    const std::int64_t group = few ? few_tiles(std::min<std::int64_t>(tokens, kFewRows)) : kTiles;
    const std::int64_t strip = few ? group : strip_of(tokens);
    for (std::int64_t tile = task.tile_begin; tile < task.tile_end; tile += strip) {
      const std::int64_t strip_tiles = std::min(strip, task.tile_end - tile);
      Block block;
      block.totals_stride = strip_tiles * 16;
      std::fill_n(totals, tokens * block.totals_stride, 0.0F);
      for (std::int64_t kb = 0; kb < k_blocks; ++kb) {
        const std::int64_t k = kb * kBlock;
        const std::int64_t cols = std::min(kBlock, weight.in - k);
        const bf16* tokens_x = task.x + begin * weight.in + k;
        block.pairs = cols / 2;
        // After the tiles' last columns come the first ones of the next strip's.
        block.ahead = kb + 1 < k_blocks ? kBlock * kTileRows : strip_tiles * tile_elements - k * kTileRows;
#if OCTAVO_BF16_PANEL
        block.x = tokens_x;
        block.x_stride = weight.in;
#else
        const float factor = few && fp8 ? kFewFactor : 1.0F;
        for (std::int64_t m = 0; m < tokens; ++m)
          convert_token(tokens_x + m * weight.in, cols, factor, x + m * kBlock);
        block.x = x;
        block.x_stride = kBlock;
#endif
        if (fp8) {
          block.x_scales = task.x_scales + begin * k_blocks + kb;
          block.x_scales_stride = k_blocks;
          block.w_scales = w_scales;
        }
        for (std::int64_t first = 0; first < strip_tiles; first += group) {
          const int tiles = static_cast<int>(std::min(group, strip_tiles - first));
          const std::int64_t at = (tile + first) * tile_elements + k * kTileRows;
          block.totals = totals + first * 16;
          block.panel = panel;
          block.panel_stride = kPairs * kPairElements;
          block.weights_stride = tile_elements;
          if (fp8) {
            for (int t = 0; t < tiles; ++t) {
              const auto row = static_cast<std::size_t>(tile + first + t);
              w_scales[t] = weight.scales[weight.scale_rows[row] * k_blocks + kb];
            }
            block.weights = static_cast<const std::uint8_t*>(weight.data) + at;
          } else {
            block.weights = static_cast<const bf16*>(weight.data) + at;
          }
#if OCTAVO_BF16_PANEL
          if (!fp8) {
            block.panel = static_cast<const bf16*>(block.weights);
            block.panel_stride = tile_elements;
          }
#else
          if (few) {
            for_each_group(block, tokens, kFewRows, [&](const Block& part, std::int64_t rows) {
              multiply_few_rows(part, rows, tiles);
            });
            continue;
          }
          for (int t = 0; t < tiles && !fp8; ++t)
            decode_bf16_tile(static_cast<const bf16*>(block.weights) + t * tile_elements, block.pairs,
                             block.ahead, panel + t * block.panel_stride);
#endif
          for (int t = 0; t < tiles && fp8; ++t)
            decode_fp8_tile(static_cast<const std::uint8_t*>(block.weights) + t * tile_elements, block.pairs,
                            block.ahead, panel + t * block.panel_stride);
          multiply(block, tokens, tiles);
        }
      }
      write_output(task, totals, block.totals_stride, begin, tokens, tile, static_cast<int>(strip_tiles));
    }
  }
}

}  // namespace octavo::OCTAVO_ISA_NS
