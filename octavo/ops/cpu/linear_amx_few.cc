// The linear layer for a few tokens beside AMX: AVX-512's multiply-add in the order of TDPBF16PS, so that a
// token's bits are those that the tiles of linear_amx.cc give it. Weights are decoded in registers.
//
//   for each 32 columns:  even = Σ of the even ones from 0, odd = Σ of the odd ones from 0, in rising order
//                         sum += even + odd
//   total as in linear_amx.cc
//
// The even and the odd chains together take no more multiply-adds than one chain of all columns; only their
// joining, once for 32 columns, is extra.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "octavo/ops/cpu/linear_amx.h"
#include "octavo/ops/cpu/linear_decode.h"

namespace octavo::OCTAVO_ISA_NS {
namespace {

constexpr std::int64_t kStepPairs = 16;
constexpr int kMostRows = 3;
constexpr int tiles_of(int rows) { return rows == 1 ? 4 : 2; }

// An FP8 product is formed of x · 2^118 (it fits below 2^127) and w · 2^-120, so sums are too small by 2^2,
// which is exact.
constexpr float kFactor = 0x1p118F;

// 128 columns of R tokens and T tiles.
struct Block {
  const float* x = nullptr;  // of the first token, the odd column of each pair first
  std::int64_t x_stride = 0;
  std::int64_t pairs = 0;
  const void* weights = nullptr;  // T tiles as they lie in memory
  std::int64_t weights_stride = 0;
  std::int64_t ahead = 0;  // elements from `weights` to the block that is read after this one
};

template <int R, int T, bool kFp8>
void multiply(const Block& block, V16 (&sums)[R][T]) {
  for (auto& row : sums)
    for (V16& sum : row) sum = zero();
  for (std::int64_t begin = 0; begin < block.pairs; begin += kStepPairs) {
    V16 evens[R][T];
    V16 odds[R][T];
    for (auto& row : evens)
      for (V16& even : row) even = zero();
    for (auto& row : odds)
      for (V16& odd : row) odd = zero();
    const std::int64_t end = std::min(begin + kStepPairs, block.pairs);
    for (std::int64_t p = begin; p < end; ++p) {
      for (int t = 0; t < T; ++t) {
        V16 odd;
        V16 even;
        const std::int64_t at = t * block.weights_stride + p * kPairElements;
        if constexpr (kFp8) {
          const auto* codes = static_cast<const std::uint8_t*>(block.weights) + at;
          __builtin_prefetch(codes + block.ahead);
          decode_fp8_pair(codes, odd, even);
        } else {
          const auto* values = static_cast<const bf16*>(block.weights) + at;
          __builtin_prefetch(values + block.ahead);
          decode_bf16_pair(values, odd, even);
        }
        for (int r = 0; r < R; ++r) {
          const float* x = block.x + r * block.x_stride + p * 2;
          odds[r][t] = fma(set1(x[0]), odd, odds[r][t]);
          evens[r][t] = fma(set1(x[1]), even, evens[r][t]);
        }
      }
    }
    // A tile has zeros behind the last column: adding them makes +0 of -0.
    const bool cut = end - begin < kStepPairs;
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t)
        sums[r][t] += cut ? (evens[r][t] + zero()) + (odds[r][t] + zero()) : evens[r][t] + odds[r][t];
  }
  if constexpr (kFp8)
    for (auto& row : sums)
      for (V16& sum : row) sum = sum * set1(kRebias / kFactor);
}

// As VCVTNEPS2BF16, with which linear_amx.cc ends: a subnormal becomes zero.
void store_flushed(bf16* out, V16 value) {
  const I16 exponent = bits(value) & iset1(0x7f800000);
  const I16 sign = bits(value) & iset1(static_cast<std::int32_t>(0x80000000U));
  store(out, from_bits(select_greater(exponent, iset1(0), bits(value), sign)));
}

// R tokens against T tiles over all columns.
template <int R, int T, bool kFp8>
void multiply_tiles(const LinearTask& task, const float* x, std::int64_t token, std::int64_t tile,
                    std::int64_t next_tile) {
  const LinearWeight& weight = *task.weight;
  const std::int64_t k_blocks = weight.scale_cols();
  const std::int64_t tile_elements = weight.in * kTileRows;  // `in` is even
  const std::int64_t element_bytes = kFp8 ? 1 : 2;
  V16 totals[R][T];
  for (auto& row : totals)
    for (V16& total : row) total = zero();
  Block block;
  block.x_stride = weight.in;
  block.weights_stride = tile_elements;
  for (std::int64_t kb = 0; kb < k_blocks; ++kb) {
    const std::int64_t k = kb * kBlock;
    block.x = x + k;
    block.pairs = std::min(kBlock, weight.in - k) / 2;
    block.weights = static_cast<const std::uint8_t*>(weight.data) +
                    (tile * tile_elements + k * kTileRows) * element_bytes;
    // After the tiles' last columns come the first ones of the next tiles.
    block.ahead = kb + 1 < k_blocks ? kBlock * kTileRows : (next_tile - tile) * tile_elements - k * kTileRows;
    V16 sums[R][T];
    multiply<R, T, kFp8>(block, sums);
    for (int t = 0; t < T; ++t) {
      if constexpr (kFp8) {
        const float w_scale =
            weight.scales[weight.scale_rows[static_cast<std::size_t>(tile + t)] * k_blocks + kb];
        for (int r = 0; r < R; ++r) {
          const float x_scale = task.x_scales[(token + r) * k_blocks + kb];
          totals[r][t] = fma(in_row_order(sums[r][t]), set1(x_scale * w_scale), totals[r][t]);
        }
      } else {
        for (int r = 0; r < R; ++r) totals[r][t] += sums[r][t];
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) {
      const std::int64_t column = (tile + t) * kTileRows;
      const std::int64_t at = (token + r) * weight.out + column;
      V16 value = totals[r][t];
      if (weight.bias != nullptr) value += load(weight.bias + column);
      if (task.out_f32 != nullptr)
        store(task.out_f32 + at, value);
      else
        store_flushed(task.out_bf16 + at, value);
    }
  }
}

template <int R, bool kFp8, int T = tiles_of(R)>
void multiply_rows(const LinearTask& task, const float* x, std::int64_t token, std::int64_t tile) {
  for (; tile + T <= task.tile_end; tile += T) multiply_tiles<R, T, kFp8>(task, x, token, tile, tile + T);
  if constexpr (T > 1) multiply_rows<R, kFp8, T / 2>(task, x, token, tile);
}

template <bool kFp8>
[[gnu::noinline]] void multiply_all(const LinearTask& task) {
  const std::int64_t in = task.weight->in;
  thread_local std::vector<float> x;
  x.resize(static_cast<std::size_t>(kMostRows * in));
  for (std::int64_t token = 0; token < task.tokens; token += kMostRows) {
    const std::int64_t rows = std::min<std::int64_t>(kMostRows, task.tokens - token);
    convert_token(task.x + token * in, rows * in, kFp8 ? kFactor : 1.0F, x.data());
    if (rows == 1)
      multiply_rows<1, kFp8>(task, x.data(), token, task.tile_begin);
    else if (rows == 2)
      multiply_rows<2, kFp8>(task, x.data(), token, task.tile_begin);
    else
      multiply_rows<3, kFp8>(task, x.data(), token, task.tile_begin);
  }
}

}  // namespace

void linear_in_tile_order(const LinearTask& task) {
  const Precision precision = task.weight->precision;
  const FlushSubnormals flush(precision);
  if (precision == Precision::kFP8)
    multiply_all<true>(task);
  else
    multiply_all<false>(task);
}

}  // namespace octavo::OCTAVO_ISA_NS
