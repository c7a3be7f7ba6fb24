// The linear layer on AMX: 16×16 tiles of sums, each product over 32 columns (16 pairs).
//
// Tokens are packed into A tiles once. For each 128 columns of K, four weight tiles are decoded into a panel
// that stays in L1 (bf16 weights lie in memory as B tiles already), and all tokens are run against it: two
// groups of tokens by two weight tiles, so that four sums are in flight and each loaded tile is used twice;
// or, up to sixteen tokens, one group by four. One token or a thousand go through the same arithmetic (the
// first few by multiply-adds, linear_amx_few.cc):
//
//   sum[m][n]  = the tile product's, over the block's steps of 32 columns from 0
//   total[m][n] = fma(sum, x_scale · w_scale, total)                            (bf16: total + sum)
//
// A product adds the even columns of its 32 in one chain from 0, the odd ones in another, then the two, then
// them to the sum (Intel SDM, TDPBF16PS), and reads and makes subnormals as zero; bf16 totals do likewise. So
// the bits differ from the other instruction sets', but not with the number of tokens: a row of a tile
// depends on nothing of another row.
//
// Three things keep the tile unit busy: a block's sums are scaled into the totals while the next product runs
// (one stored to memory is not to be read at once); nothing is copied between products; and rows are shared
// out evenly over the groups, so that one tile configuration serves a whole call.
#include "octavo/ops/cpu/linear_amx.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "octavo/ops/cpu/linear_decode.h"

namespace octavo::OCTAVO_ISA_NS {
namespace {

constexpr std::int64_t kTokenChunk = 256;
constexpr std::int64_t kMaxRows = 16;
constexpr std::int64_t kPanelTiles = 4;
constexpr std::int64_t kPanelStride = kPairs * kPairElements;
constexpr std::int64_t kTotalsStride = kPanelTiles * kTileRows;
constexpr std::int64_t kStepPairs = 16;
constexpr int kSteps = kPairs / kStepPairs;
constexpr std::int64_t kRowBytes = 64;
constexpr std::int64_t kSumElements = kMaxRows * kTileRows;

struct alignas(64) TileRow {
  bf16 columns[2 * kStepPairs];
};
// A group's 128 columns: [step][row].
constexpr std::int64_t kGroupRows = kSteps * kMaxRows;

// How the tokens of a chunk are shared out: an even number of groups with as many rows each as the largest,
// or one.
struct Groups {
  std::int64_t count;
  std::int64_t rows;
  std::int64_t tokens;
  int rows_of(std::int64_t group) const {
    return static_cast<int>(std::clamp<std::int64_t>(tokens - group * rows, 0, rows));
  }
};

Groups share_out(std::int64_t tokens) {
  const std::int64_t count = tokens <= kMaxRows ? 1 : (tokens + 2 * kMaxRows - 1) / (2 * kMaxRows) * 2;
  return {count, (tokens + count - 1) / count, tokens};
}

// Tile registers: 0 to 3 sums, 4 and 5 tokens, 6 and 7 weights.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t column_bytes[16] = {};
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// The intrinsics do not tell the compiler which memory they read.
void publish_memory() { asm volatile("" ::: "memory"); }

void configure_tiles(std::int64_t rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.column_bytes[tile] = kRowBytes;
    config.rows[tile] = static_cast<std::uint8_t>(tile < 6 ? rows : kStepPairs);
  }
  publish_memory();
  _tile_loadconfig(&config);
}

std::int64_t steps_of(std::int64_t pairs) { return (pairs + kStepPairs - 1) / kStepPairs; }

// Packs all columns of the tokens: [block][group][step][row], zeros behind the last column.
void pack_tokens(const bf16* x, std::int64_t in, const Groups& groups, TileRow* out) {
  for (std::int64_t k = 0; k < in; k += kBlock, out += groups.count * kGroupRows) {
    const std::int64_t cols = std::min(kBlock, in - k);
    const bf16* from = x + k;
    for (std::int64_t group = 0; group < groups.count; ++group) {
      for (int r = 0; r < groups.rows_of(group); ++r, from += in) {
        TileRow* row = out + group * kGroupRows + r;
        for (std::int64_t c = 0; c < cols; c += 2 * kStepPairs, row += kMaxRows) {
          const std::int64_t some = std::min(2 * kStepPairs, cols - c);
          const auto mask = static_cast<__mmask32>((std::uint64_t{1} << some) - 1);
          _mm512_store_si512(row, _mm512_maskz_loadu_epi16(mask, from + c));
        }
      }
    }
  }
}

// A product's sums on their way to the totals: of one group of tokens with up to four weight tiles, or of two
// groups with up to two each.
struct Sums {
  alignas(64) float tiles[4][kSumElements];
  int groups = 0;
  int columns = 0;  // weight tiles
  int rows[2] = {};
  float* totals[2] = {};  // of a group's first token
  const float* x_scales[2] = {};
  float w_scales[kPanelTiles] = {};
  std::int64_t x_scales_stride = 0;
  bool scaled = false;
};

template <int T>
void add_rows(const Sums& sums, int group, int begin, int end) {
  const float* tiles = sums.tiles[group * 2] + begin * kTileRows;
  float* totals = sums.totals[group] + begin * kTotalsStride;
  const std::int64_t rows = end - begin;
  if (!sums.scaled) {
    for (std::int64_t r = 0; r < rows; ++r, tiles += kTileRows, totals += kTotalsStride)
      for (int t = 0; t < T; ++t)
        store(totals + t * 16, load(totals + t * 16) + load(tiles + t * kSumElements));
    return;
  }
  V16 w_scales[T];
  for (int t = 0; t < T; ++t) w_scales[t] = set1(sums.w_scales[t]);
  const std::int64_t stride = sums.x_scales_stride;
  const float* x_scale = sums.x_scales[group] + begin * stride;
  for (std::int64_t r = 0; r < rows; ++r, tiles += kTileRows, totals += kTotalsStride, x_scale += stride) {
    const V16 scale = set1(*x_scale);
    for (int t = 0; t < T; ++t)
      store(totals + t * 16, fma(load(tiles + t * kSumElements), scale * w_scales[t], load(totals + t * 16)));
  }
}

// One of the four parts in which sums are added to their totals.
void add_part(const Sums& sums, int part) {
  const int group = sums.groups == 2 ? part / 2 : 0;
  const int share = sums.groups == 2 ? 8 : 4;
  const int begin = sums.groups == 2 ? part % 2 * share : part * share;
  const int end = std::min(begin + share, sums.rows[group]);
  if (begin >= end) return;
  switch (sums.columns) {
    case 1:
      return add_rows<1>(sums, group, begin, end);
    case 2:
      return add_rows<2>(sums, group, begin, end);
    case 3:
      return add_rows<3>(sums, group, begin, end);
    default:
      return add_rows<4>(sums, group, begin, end);
  }
}

void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Two groups of tokens against two weight tiles, into `now`; meanwhile `before` goes to its totals.
void multiply_two(const TileRow* x, const bf16* const (&weights)[kPanelTiles], std::int64_t steps,
                  const Sums& before, Sums& now) {
  const bf16* first = weights[0];
  const bf16* second = weights[now.columns - 1];
  zero_sums();
  for (int step = 0; step < kSteps; ++step) {
    if (step < steps) {
      _tile_loadd(4, x + step * kMaxRows, kRowBytes);
      _tile_loadd(6, first + step * kStepPairs * kPairElements, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, second + step * kStepPairs * kPairElements, kRowBytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, x + kGroupRows + step * kMaxRows, kRowBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    add_part(before, step);
  }
  _tile_stored(0, now.tiles[0], kRowBytes);
  _tile_stored(1, now.tiles[1], kRowBytes);
  _tile_stored(2, now.tiles[2], kRowBytes);
  _tile_stored(3, now.tiles[3], kRowBytes);
}

// One group of tokens against up to four weight tiles.
void multiply_one(const TileRow* x, const bf16* const (&weights)[kPanelTiles], std::int64_t steps,
                  const Sums& before, Sums& now) {
  zero_sums();
  for (int step = 0; step < kSteps; ++step) {
    if (step < steps) {
      const std::int64_t at = step * kStepPairs * kPairElements;
      _tile_loadd(4, x + step * kMaxRows, kRowBytes);
      _tile_loadd(6, weights[0] + at, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      if (now.columns > 1) {
        _tile_loadd(7, weights[1] + at, kRowBytes);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (now.columns > 2) {
        _tile_loadd(6, weights[2] + at, kRowBytes);
        _tile_dpbf16ps(2, 4, 6);
      }
      if (now.columns > 3) {
        _tile_loadd(7, weights[3] + at, kRowBytes);
        _tile_dpbf16ps(3, 4, 7);
      }
    }
    add_part(before, step);
  }
  _tile_stored(0, now.tiles[0], kRowBytes);
  if (now.columns > 1) _tile_stored(1, now.tiles[1], kRowBytes);
  if (now.columns > 2) _tile_stored(2, now.tiles[2], kRowBytes);
  if (now.columns > 3) _tile_stored(3, now.tiles[3], kRowBytes);
}

// Where 128 columns of a weight tile lie as B tiles, with zeros behind the last column; and what is read next
// is asked for. `at`: of the block in the weights, in elements.
const bf16* prepare(const LinearWeight& weight, std::int64_t at, std::int64_t pairs, std::int64_t ahead,
                    bf16* panel) {
  const std::int64_t whole = steps_of(pairs) * kStepPairs;
  if (weight.precision == Precision::kFP8) {
    decode_fp8_tile(static_cast<const std::uint8_t*>(weight.data) + at, pairs, ahead, panel);
  } else {
    const bf16* values = static_cast<const bf16*>(weight.data) + at;
    for (std::int64_t p = 0; p < pairs; ++p) __builtin_prefetch(values + ahead + p * kPairElements);
    if (pairs == whole) return values;
    std::copy_n(values, pairs * kPairElements, panel);
  }
  std::fill(panel + pairs * kPairElements, panel + whole * kPairElements, bf16{0});
  return panel;
}

void write_output(const LinearTask& task, const float* totals, std::int64_t token_begin, std::int64_t tokens,
                  std::int64_t tile, std::int64_t tiles) {
  const LinearWeight& weight = *task.weight;
  V16 bias[kPanelTiles];
  for (std::int64_t t = 0; t < tiles; ++t)
    bias[t] = weight.bias == nullptr ? zero() : load(weight.bias + (tile + t) * kTileRows);
  for (std::int64_t m = 0; m < tokens; ++m, totals += kTotalsStride) {
    const std::int64_t at = (token_begin + m) * weight.out + tile * kTileRows;
    for (std::int64_t t = 0; t < tiles; ++t) {
      V16 value = load(totals + t * 16);
      if (weight.bias != nullptr) value = value + bias[t];
      if (task.out_f32 != nullptr)
        store(task.out_f32 + at + t * 16, value);
      else
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(task.out_bf16 + at + t * 16),
                            reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value.v)));
    }
  }
}

// Not inlined, so that no arithmetic leaves the scope of FlushSubnormals.
[[gnu::noinline]] void multiply_all(const LinearTask& task) {
  const LinearWeight& weight = *task.weight;
  const bool fp8 = weight.precision == Precision::kFP8;
  const std::int64_t k_blocks = weight.scale_cols();
  const std::int64_t tile_elements = weight.in * kTileRows;  // `in` is even

  thread_local std::vector<TileRow> packed;
  alignas(64) bf16 panel[kPanelTiles * kPanelStride];
  alignas(64) float totals[kTokenChunk * kTotalsStride];
  Sums sums[2];
  Sums* before = &sums[0];
  Sums* now = &sums[1];
  now->scaled = before->scaled = fp8;
  now->x_scales_stride = before->x_scales_stride = k_blocks;

  for (std::int64_t begin = 0; begin < task.tokens; begin += kTokenChunk) {
    const Groups groups = share_out(std::min(kTokenChunk, task.tokens - begin));
    const std::int64_t side = groups.count == 1 ? 1 : 2;  // groups of a product
    const std::int64_t across = kPanelTiles / side;       // weight tiles of a product
    packed.resize(static_cast<std::size_t>(k_blocks * groups.count * kGroupRows));
    pack_tokens(task.x + begin * weight.in, weight.in, groups, packed.data());
    configure_tiles(groups.rows);
    for (std::int64_t tile = task.tile_begin; tile < task.tile_end; tile += kPanelTiles) {
      const std::int64_t tiles = std::min(kPanelTiles, task.tile_end - tile);
      std::fill_n(totals, groups.tokens * kTotalsStride, 0.0F);
      for (std::int64_t kb = 0; kb < k_blocks; ++kb) {
        const std::int64_t k = kb * kBlock;
        const std::int64_t pairs = std::min(kBlock, weight.in - k) / 2;
        // After the tiles' last columns come the first ones of the next tiles.
        const std::int64_t ahead =
            kb + 1 < k_blocks ? kBlock * kTileRows : tiles * tile_elements - k * kTileRows;
        const bf16* weights[kPanelTiles] = {};
        float w_scales[kPanelTiles] = {};
        for (std::int64_t t = 0; t < tiles; ++t) {
          weights[t] = prepare(weight, (tile + t) * tile_elements + k * kTileRows, pairs, ahead,
                               panel + t * kPanelStride);
          if (fp8)
            w_scales[t] =
                weight.scales[weight.scale_rows[static_cast<std::size_t>(tile + t)] * k_blocks + kb];
        }
        publish_memory();
        const TileRow* x = packed.data() + kb * groups.count * kGroupRows;
        for (std::int64_t group = 0; group < groups.count; group += side, x += side * kGroupRows) {
          for (std::int64_t t = 0; t < tiles; t += across) {
            const bf16* operands[kPanelTiles] = {};
            now->groups = static_cast<int>(side);
            now->columns = static_cast<int>(std::min(across, tiles - t));
            for (int c = 0; c < now->columns; ++c) {
              operands[c] = weights[t + c];
              now->w_scales[c] = w_scales[t + c];
            }
            for (int g = 0; g < side; ++g) {
              const std::int64_t token = (group + g) * groups.rows;
              now->rows[g] = groups.rows_of(group + g);
              now->totals[g] = totals + token * kTotalsStride + t * kTileRows;
              if (fp8) now->x_scales[g] = task.x_scales + (begin + token) * k_blocks + kb;
            }
            if (side == 1)
              multiply_one(x, operands, steps_of(pairs), *before, *now);
            else
              multiply_two(x, operands, steps_of(pairs), *before, *now);
            std::swap(before, now);
          }
        }
      }
      for (int part = 0; part < kSteps; ++part) add_part(*before, part);
      before->rows[0] = before->rows[1] = 0;
      write_output(task, totals, begin, groups.tokens, tile, tiles);
    }
    _tile_release();
  }
}

}  // namespace

void linear(const LinearTask& task) {
  if (task.tokens <= few_tokens(task.weight->precision)) return avx512::linear_in_tile_order(task);
  const FlushSubnormals flush(task.weight->precision);
  multiply_all(task);
}

}  // namespace octavo::OCTAVO_ISA_NS
