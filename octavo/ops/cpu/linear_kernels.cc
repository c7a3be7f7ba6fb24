// The linear layer: out = x · wᵀ for block-scaled FP8 and for bf16 weights.
//
// Weights lie in tiles of 16 rows, two columns interleaved (quant/code_layout.h). For each 128 columns of K a
// few tiles are decoded into a panel that stays in L1, and all tokens are run against it: the decoding is
// paid once for all tokens, and one token or a thousand go through the same arithmetic:
//
//   acc[n]   = Σ over the pairs of the block, odd column first, then even     (FP32; the order of VDPBF16PS)
//   total[n] = fma(acc[n], x_scale · w_scale, total[n])                        (bf16: total[n] + acc[n])
//
// Products of bf16 (and of E4M3) values are exact in FP32, so multiply-add and fused multiply-add agree, and
// portable, AVX2, AVX-512 and AVX512-BF16 give the same bits. AMX adds even and odd columns apart and is only
// close.
#include <algorithm>
#include <cstring>

#include "octavo/base/simd.h"
#include "octavo/ops/cpu/kernels.h"
#include "octavo/quant/code_layout.h"

namespace octavo::OCTAVO_ISA_NS {
namespace {

constexpr std::int64_t kPairs = kBlock / 2;
// Tokens and tiles whose totals are held at once: a strip, 192 KiB of L2.
constexpr std::int64_t kTokenChunk = 256;
constexpr std::int64_t kStripTiles = 12;

#if OCTAVO_ISA_avx512bf16 || OCTAVO_ISA_amxbf16
#define OCTAVO_BF16_PANEL 1
#endif

#if OCTAVO_BF16_PANEL
using PanelElement = bf16;  // a pair is 32 bf16, as in memory
#else
using PanelElement = float;  // a pair is 16 floats of the odd column, then 16 of the even one; x likewise
#endif
constexpr std::int64_t kPairElements = 32;

// Register blocks: tokens × tiles. The wide form is for one or two tokens, where only many independent tiles
// can hide the latency of the multiply-add.
#if OCTAVO_ISA_portable
constexpr int kRows = 2, kTiles = 1, kWideRows = 1, kWideTiles = 2;
#elif OCTAVO_ISA_avx2
constexpr int kRows = 6, kTiles = 1, kWideRows = 1, kWideTiles = 4;
#else
constexpr int kRows = 8, kTiles = 3, kWideRows = 2, kWideTiles = 8;
#endif
constexpr int kPanelTiles = kWideTiles;
static_assert(kStripTiles % kTiles == 0 && kStripTiles >= kWideTiles);

#if OCTAVO_BF16_PANEL

// E4M3 to bf16, 64 codes (two pairs) at a time, as high and low bytes that are interleaved at the end. A
// normal code's seven magnitude bits move up by four and gain an exponent bias of 120, of which the low byte
// sees nothing. The eight subnormal magnitudes are looked up: the hardware's dot product reads a bf16
// subnormal as zero, so scaling would lose them.
alignas(64) constexpr std::uint8_t kSubnormalHigh[64] = {0x00, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c};
alignas(64) constexpr std::uint8_t kSubnormalLow[64] = {0x00, 0x00, 0x80, 0xc0, 0x00, 0x20, 0x40, 0x60};

void decode_fp8_tile(const std::uint8_t* codes, std::int64_t pairs, PanelElement* panel) {
  const __m512i high_table = _mm512_load_si512(kSubnormalHigh);
  const __m512i low_table = _mm512_load_si512(kSubnormalLow);
  // Puts the eight-byte pieces where the in-lane interleaving leaves whole pairs.
  const __m512i pieces = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  const __m512i exponent = _mm512_set1_epi8(0x78);
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  const __m512i bias = _mm512_set1_epi8(0x3c);
  const auto decode = [&](__m512i raw, __m512i& first, __m512i& second) {
    const __m512i code = _mm512_permutexvar_epi64(pieces, raw);
    const __mmask64 subnormal = _mm512_testn_epi8_mask(code, exponent);
    __m512i low = _mm512_and_si512(_mm512_slli_epi16(code, 4), _mm512_set1_epi8(static_cast<char>(0xf0)));
    __m512i high = _mm512_and_si512(_mm512_srli_epi16(code, 4), _mm512_set1_epi8(0x07));
    high = _mm512_add_epi8(high, bias);
    low = _mm512_mask_permutexvar_epi8(low, subnormal, code, low_table);
    high = _mm512_mask_permutexvar_epi8(high, subnormal, code, high_table);
    high = _mm512_ternarylogic_epi64(high, code, sign, 0xf8);  // high | (code & sign)
    first = _mm512_unpacklo_epi8(low, high);
    second = _mm512_unpackhi_epi8(low, high);
  };
  __m512i first;
  __m512i second;
  std::int64_t p = 0;
  for (; p + 2 <= pairs; p += 2) {
    __builtin_prefetch(codes + p * 32 + 32 * kPairs);
    decode(_mm512_loadu_si512(codes + p * 32), first, second);
    _mm512_store_si512(panel + p * kPairElements, first);
    _mm512_store_si512(panel + (p + 1) * kPairElements, second);
  }
  if (p < pairs) {
    decode(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + p * 32))),
           first, second);
    _mm512_store_si512(panel + p * kPairElements, first);
  }
}

#else

// E4M3 to FP32: the code's sign goes to bit 31 and its other seven bits to 20 … 26, where one exact
// multiplication mends the exponent bias (7 against 127) for normals and subnormals alike. Signed shifts
// bring the sign and copies of it, which the mask takes away again.
void decode_fp8_tile(const std::uint8_t* codes, std::int64_t pairs, PanelElement* panel) {
  const V16 rebias = set1(0x1p120F);
  const I16 mask = iset1(static_cast<std::int32_t>(0x87f00000U));
  for (std::int64_t p = 0; p < pairs; ++p) {
    const I16 pair = load_i16(codes + p * 32);
    __builtin_prefetch(codes + p * 32 + 32 * kPairs);
    const I16 odd = shift_left<12>(pair) & mask;
    const I16 even = shift_right_signed<4>(shift_left<24>(pair)) & mask;
    store(panel + p * kPairElements, from_bits(odd) * rebias);
    store(panel + p * kPairElements + 16, from_bits(even) * rebias);
  }
}

void decode_bf16_tile(const bf16* values, std::int64_t pairs, PanelElement* panel) {
  const I16 upper = iset1(static_cast<std::int32_t>(0xffff0000U));
  for (std::int64_t p = 0; p < pairs; ++p) {
    const I16 pair = load_bits(values + p * 32);
    store(panel + p * kPairElements, from_bits(pair & upper));
    store(panel + p * kPairElements + 16, from_bits(shift_left<16>(pair)));
  }
}

// `cols` columns of a token to FP32, the odd one of each pair first: the order in which they are added.
void convert_token(const bf16* x, std::int64_t cols, float* out) {
  std::int64_t k = 0;
  for (; k + 16 <= cols; k += 16) store(out + k, swap_pairs(load(x + k)));
  for (; k < cols; ++k) out[k] = to_float(x[k ^ 1]);
}

#endif

// One 128-column block of up to R tokens and T tiles.
struct Block {
  const PanelElement* x = nullptr;  // first token, first column of the block
  std::int64_t x_stride = 0;
  std::int64_t pairs = 0;
  const PanelElement* panel = nullptr;  // T tiles, kPairs * kPairElements apart, or the weights themselves
  std::int64_t panel_stride = 0;
  const float* x_scales = nullptr;  // of the first token; null for bf16
  std::int64_t x_scales_stride = 0;
  const float* w_scales = nullptr;  // [T]
  float* totals = nullptr;          // [R, totals_stride]
  std::int64_t totals_stride = 0;
};

template <int R, int T>
void add_to_totals(const Block& block, const V16 (&acc)[R][T]) {
  for (int r = 0; r < R; ++r) {
    float* totals = block.totals + r * block.totals_stride;
    if (block.x_scales != nullptr) {
      const float x_scale = block.x_scales[r * block.x_scales_stride];
      for (int t = 0; t < T; ++t)
        store(totals + t * 16, fma(acc[r][t], set1(x_scale * block.w_scales[t]), load(totals + t * 16)));
    } else {
      for (int t = 0; t < T; ++t) store(totals + t * 16, load(totals + t * 16) + acc[r][t]);
    }
  }
}

#if OCTAVO_ISA_amxbf16

// Tile registers: 0 = C and 1 = A of sixteen tokens, 3 and 4 those of the last few, 2 = B.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t column_bytes[16] = {64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

void configure_tiles(std::int64_t tokens) {
  TileConfig config;
  const auto rest = static_cast<std::uint8_t>(tokens % 16 == 0 ? 16 : tokens % 16);
  config.rows[3] = config.rows[4] = rest;
  _tile_loadconfig(&config);
}

// `rows` tokens (16, or what the configuration calls the rest) against one tile.
template <bool kFull>
void multiply_amx(const Block& block, int rows) {
  alignas(64) bf16 a[16][32];
  alignas(64) float c[16][16];
  if constexpr (kFull)
    _tile_zero(0);
  else
    _tile_zero(3);
  alignas(64) bf16 b[16 * kPairElements];
  for (std::int64_t pair = 0; pair < block.pairs; pair += 16) {
    const std::int64_t pairs = std::min<std::int64_t>(16, block.pairs - pair);
    const bf16* weights = block.panel + pair * kPairElements;
    if (pairs < 16) {  // the ragged end of K: zeros on both sides
      std::memset(a, 0, sizeof a);
      std::memset(b, 0, sizeof b);
      std::memcpy(b, weights, static_cast<std::size_t>(pairs * kPairElements) * sizeof(bf16));
      weights = b;
    }
    for (int r = 0; r < rows; ++r)
      std::memcpy(a[r], block.x + r * block.x_stride + pair * 2, static_cast<std::size_t>(pairs) * 4);
    _tile_loadd(2, weights, 64);
    if constexpr (kFull) {
      _tile_loadd(1, a, 64);
      _tile_dpbf16ps(0, 1, 2);
    } else {
      _tile_loadd(4, a, 64);
      _tile_dpbf16ps(3, 4, 2);
    }
  }
  if constexpr (kFull)
    _tile_stored(0, c, 64);
  else
    _tile_stored(3, c, 64);
  for (int r = 0; r < rows; ++r) {
    Block one = block;
    one.totals += r * block.totals_stride;
    if (one.x_scales != nullptr) one.x_scales += r * block.x_scales_stride;
    const V16 acc[1][1] = {{load(c[r])}};
    add_to_totals<1, 1>(one, acc);
  }
}

void multiply(const Block& block, std::int64_t tokens, int tiles) {
  for (int t = 0; t < tiles; ++t) {
    for (std::int64_t m = 0; m < tokens; m += 16) {
      Block part = block;
      part.x += m * block.x_stride;
      part.panel += t * block.panel_stride;
      if (part.x_scales != nullptr) {
        part.x_scales += m * block.x_scales_stride;
        part.w_scales += t;
      }
      part.totals += m * block.totals_stride + t * 16;
      if (tokens - m >= 16)
        multiply_amx<true>(part, 16);
      else
        multiply_amx<false>(part, static_cast<int>(tokens - m));
    }
  }
}

#else

template <int R, int T>
void multiply_block(const Block& block) {
  V16 acc[R][T];
  for (auto& row : acc)
    for (V16& lane : row) lane = zero();
#if OCTAVO_BF16_PANEL
  const bf16* x[R];
  for (int r = 0; r < R; ++r) x[r] = block.x + r * block.x_stride;
  for (std::int64_t p = 0; p < block.pairs; ++p) {
    __m512bh w[T];
    for (int t = 0; t < T; ++t)
      w[t] = reinterpret_cast<__m512bh>(
          _mm512_loadu_si512(block.panel + t * block.panel_stride + p * kPairElements));
    for (int r = 0; r < R; ++r) {
      std::int32_t pair;
      std::memcpy(&pair, x[r] + p * 2, sizeof pair);
      const auto broadcast = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
      for (int t = 0; t < T; ++t) acc[r][t].v = _mm512_dpbf16_ps(acc[r][t].v, broadcast, w[t]);
    }
  }
#else
  for (std::int64_t column = 0; column < block.pairs * 2; ++column) {
    V16 w[T];
    for (int t = 0; t < T; ++t) w[t] = load(block.panel + t * block.panel_stride + column * 16);
    for (int r = 0; r < R; ++r) {
      const V16 x = set1(block.x[r * block.x_stride + column]);
#if OCTAVO_ISA_portable
      for (int t = 0; t < T; ++t) acc[r][t] = x * w[t] + acc[r][t];
#else
      for (int t = 0; t < T; ++t) acc[r][t] = fma(x, w[t], acc[r][t]);
#endif
    }
  }
#endif
  add_to_totals<R, T>(block, acc);
}

// All tokens against T tiles, R at a time.
template <int R, int T>
void multiply_rows(Block block, std::int64_t tokens) {
  for (; tokens >= R; tokens -= R) {
    multiply_block<R, T>(block);
    block.x += R * block.x_stride;
    if (block.x_scales != nullptr) block.x_scales += R * block.x_scales_stride;
    block.totals += R * block.totals_stride;
  }
  if constexpr (R > 1) {
    if (tokens > 0) multiply_rows<R - 1, T>(block, tokens);
  }
}

void multiply(const Block& block, std::int64_t tokens, int tiles) {
  int done = 0;
  const auto run = [&]<int R, int T>() {
    for (; tiles - done >= T; done += T) {
      Block part = block;
      part.panel += done * block.panel_stride;
      if (part.w_scales != nullptr) part.w_scales += done;
      part.totals += done * 16;
      multiply_rows<R, T>(part, tokens);
    }
  };
  if (tokens <= kWideRows) run.template operator()<kWideRows, kWideTiles>();
  run.template operator()<kRows, kTiles>();
  if constexpr (kTiles > 2) run.template operator()<kRows, 2>();
  run.template operator()<kRows, 1>();
}

#endif

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
    const std::int64_t group = tokens <= kWideRows ? kWideTiles : kTiles;
    const std::int64_t strip = tokens <= kWideRows ? kWideTiles : kStripTiles;
#if OCTAVO_ISA_amxbf16
    configure_tiles(tokens);
#endif
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
#if OCTAVO_BF16_PANEL
        block.x = tokens_x;
        block.x_stride = weight.in;
#else
        for (std::int64_t m = 0; m < tokens; ++m)
          convert_token(tokens_x + m * weight.in, cols, x + m * kBlock);
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
          if (fp8) {
            const auto* codes = static_cast<const std::uint8_t*>(weight.data) + at;
            for (int t = 0; t < tiles; ++t) {
              decode_fp8_tile(codes + t * tile_elements, block.pairs, panel + t * block.panel_stride);
              const auto row = static_cast<std::size_t>(tile + first + t);
              w_scales[t] = weight.scales[weight.scale_rows[row] * k_blocks + kb];
            }
          } else {
            const auto* values = static_cast<const bf16*>(weight.data) + at;
#if OCTAVO_BF16_PANEL
            block.panel = values;
            block.panel_stride = tile_elements;
#else
            for (int t = 0; t < tiles; ++t)
              decode_bf16_tile(values + t * tile_elements, block.pairs, panel + t * block.panel_stride);
#endif
          }
          multiply(block, tokens, tiles);
        }
      }
      write_output(task, totals, block.totals_stride, begin, tokens, tile, static_cast<int>(strip_tiles));
    }
#if OCTAVO_ISA_amxbf16
    _tile_release();
#endif
  }
}

}  // namespace octavo::OCTAVO_ISA_NS
