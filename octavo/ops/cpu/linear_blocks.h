// 128 columns of a few tokens against a few weight tiles, with the sums in registers. Part of
// linear_kernels.cc.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "octavo/ops/cpu/linear_decode.h"

namespace octavo::OCTAVO_ISA_NS {
namespace {

// Register blocks: tokens × tiles. Up to kFewTokens tokens take a way of their own, kFewRows at once against
// as many tiles as hide the latency of the multiply-add (few_tiles).
#if OCTAVO_ISA_portable
constexpr int kRows = 2, kTiles = 1, kFewTokens = 2, kFewRows = 2;
constexpr int few_tiles(std::int64_t rows) { return static_cast<int>(2 / rows); }
#elif OCTAVO_ISA_avx2
constexpr int kRows = 6, kTiles = 1, kFewTokens = 12, kFewRows = 4;
constexpr int few_tiles(std::int64_t rows) { return static_cast<int>(4 / rows); }
#elif OCTAVO_BF16_PANEL
constexpr int kRows = 8, kTiles = 3, kFewTokens = 2, kFewRows = 2;
constexpr int few_tiles(std::int64_t) { return 8; }
#else
constexpr int kRows = 8, kTiles = 3, kFewTokens = 4, kFewRows = 4;
constexpr int few_tiles(std::int64_t rows) { return static_cast<int>(8 / rows); }
#endif
constexpr int kPanelTiles = std::max(kTiles, few_tiles(1));

// One 128-column block of up to R tokens and T tiles.
struct Block {
  const PanelElement* x = nullptr;  // first token, first column of the block
  std::int64_t x_stride = 0;
  std::int64_t pairs = 0;
  const PanelElement* panel = nullptr;  // T decoded tiles, panel_stride elements apart
  std::int64_t panel_stride = 0;
  const void* weights = nullptr;  // T tiles as they lie in memory
  std::int64_t weights_stride = 0;
  std::int64_t ahead = 0;           // elements from `weights` to the block that is read after this one
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
        store(totals + t * 16,
              fma(in_row_order(acc[r][t]), set1(x_scale * block.w_scales[t]), load(totals + t * 16)));
    } else {
      for (int t = 0; t < T; ++t) store(totals + t * 16, load(totals + t * 16) + acc[r][t]);
    }
  }
}

// Calls body(block, rows) for all tokens, `most` or a little fewer at a time: a last group of one or two
// would wait for its own sums.
template <typename Body>
void for_each_group(Block block, std::int64_t tokens, std::int64_t most, const Body& body) {
  for (std::int64_t groups = (tokens + most - 1) / most; groups > 0; --groups) {
    const std::int64_t rows = (tokens + groups - 1) / groups;
    body(block, rows);
    block.x += rows * block.x_stride;
    if (block.x_scales != nullptr) block.x_scales += rows * block.x_scales_stride;
    block.totals += rows * block.totals_stride;
    tokens -= rows;
  }
}

#if !OCTAVO_BF16_PANEL
// The product is exact, so that both are the same; a processor without FMA would have to emulate it.
V16 multiply_add(V16 a, V16 b, V16 c) {
#if OCTAVO_ISA_portable
  return a * b + c;
#else
  return fma(a, b, c);
#endif
}
#endif

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
      for (int t = 0; t < T; ++t) acc[r][t] = multiply_add(x, w[t], acc[r][t]);
    }
  }
#endif
  add_to_totals<R, T>(block, acc);
}

#if !OCTAVO_BF16_PANEL

// The same for few tokens, straight from the weights: there a panel would cost more than it saves. An FP8
// product is formed of x · 2^118 (which the caller made; it fits below 2^127) and w · 2^-120, so sums are too
// small by 2^2, which is exact.
constexpr float kFewFactor = 0x1p118F;

template <int R, int T, bool kFp8>
void multiply_few(const Block& block) {
  V16 acc[R][T];
  for (auto& row : acc)
    for (V16& lane : row) lane = zero();
  for (std::int64_t p = 0; p < block.pairs; ++p) {
    V16 odd[T];
    V16 even[T];
    for (int t = 0; t < T; ++t) {
      const std::int64_t at = t * block.weights_stride + p * kPairElements;
      if constexpr (kFp8) {
        const auto* codes = static_cast<const std::uint8_t*>(block.weights) + at;
        __builtin_prefetch(codes + block.ahead);
        decode_fp8_pair(codes, odd[t], even[t]);
      } else {
        decode_bf16_pair(static_cast<const bf16*>(block.weights) + at, odd[t], even[t]);
      }
    }
    for (int r = 0; r < R; ++r) {
      const V16 x_odd = set1(block.x[r * block.x_stride + p * 2]);
      const V16 x_even = set1(block.x[r * block.x_stride + p * 2 + 1]);
      for (int t = 0; t < T; ++t) {
        acc[r][t] = multiply_add(x_odd, odd[t], acc[r][t]);
        acc[r][t] = multiply_add(x_even, even[t], acc[r][t]);
      }
    }
  }
  if constexpr (kFp8)
    for (auto& row : acc)
      for (V16& lane : row) lane = lane * set1(kRebias / kFewFactor);
  add_to_totals<R, T>(block, acc);
}

template <int R, int T>
void few_against(Block& block, int& tiles) {
  for (; tiles >= T; tiles -= T) {
    if (block.x_scales != nullptr) {
      multiply_few<R, T, true>(block);
      block.weights = static_cast<const std::uint8_t*>(block.weights) + T * block.weights_stride;
      block.w_scales += T;
    } else {
      multiply_few<R, T, false>(block);
      block.weights = static_cast<const bf16*>(block.weights) + T * block.weights_stride;
    }
    block.totals += T * 16;
  }
  if constexpr (T > 1) few_against<R, T / 2>(block, tiles);
}

template <int R = kFewRows>
void multiply_few_rows(Block block, std::int64_t rows, int tiles) {
  if constexpr (R > 1)
    if (rows < R) return multiply_few_rows<R - 1>(block, rows, tiles);
  few_against<R, few_tiles(R)>(block, tiles);
}

#endif

// `rows` tokens, at most R, against T tiles.
template <int R, int T>
void multiply_rows(const Block& block, std::int64_t rows) {
  if constexpr (R > 1)
    if (rows < R) return multiply_rows<R - 1, T>(block, rows);
  multiply_block<R, T>(block);
}

void multiply(const Block& block, std::int64_t tokens, int tiles) {
  int done = 0;
  const auto run = [&]<int R, int T>() {
    for (; tiles - done >= T; done += T) {
      Block part = block;
      part.panel += done * block.panel_stride;
      if (part.w_scales != nullptr) part.w_scales += done;
      part.totals += done * 16;
      for_each_group(part, tokens, R, multiply_rows<R, T>);
    }
  };
#if OCTAVO_BF16_PANEL
  if (tokens <= kFewTokens) run.template operator()<kFewTokens, few_tiles(1)>();
#endif
  run.template operator()<kRows, kTiles>();
  if constexpr (kTiles > 2) run.template operator()<kRows, 2>();
  run.template operator()<kRows, 1>();
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA_NS
