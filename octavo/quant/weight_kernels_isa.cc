// Weight blocks to codes or bf16, on sixteen lanes; compiled once for each instruction set.
//
// A block is read from memory once: 128×128 bf16 values are 32 KiB, which the second pass finds in the cache.
// Both passes take 32 columns at a time as sixteen column pairs, the even column and the odd one in a vector
// each, because a pair is the unit of the tiled layout, and as two adjacent bytes also what row-major order
// wants.

#include <algorithm>

#include "octavo/quant/pair_tiles.h"
#include "octavo/quant/weight_kernels.h"

namespace octavo::OCTAVO_ISA_NS {
namespace {

struct Columns {
  V16 even;
  V16 odd;
};

// Running maxima of magnitude bits; infinities and NaN, whose bits are larger than any finite value's, win.
struct Amax {
  I16 even = iset1(0);
  I16 odd = iset1(0);
};

std::int32_t largest_lane(I16 a) {
  std::int32_t lanes[16];
  store_bits(lanes, a);
  std::int32_t largest = 0;
  for (const std::int32_t lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

// A source type says how 32 columns are loaded, how they enter the running maxima, and what these amount to.
struct SourceF32 {
  static constexpr int kBytes = 4;
  static Columns load_columns(const std::byte* p) {
    Columns out;
    split_even_odd(from_bits(load_bits(p)), from_bits(load_bits(p + 64)), out.even, out.odd);
    return out;
  }
  static void update(Amax& amax, const std::byte* p) {
    amax.even = max(amax.even, load_bits(p) & iset1(0x7fffffff));
    amax.odd = max(amax.odd, load_bits(p + 64) & iset1(0x7fffffff));
  }
  static float value(const Amax& amax) {
    return std::bit_cast<float>(largest_lane(max(amax.even, amax.odd)));
  }
};

// Two 16-bit values in a lane: the even column below, the odd one above.
struct Source16 {
  static constexpr int kBytes = 2;
  static void update(Amax& amax, const std::byte* p) {
    const I16 raw = load_bits(p);
    amax.even = max(amax.even, raw & iset1(0x7fff));
    amax.odd =
        max(amax.odd, raw & iset1(0x7fffffff));  // the lower half cannot change which upper half is largest
  }
  static std::int32_t magnitude(const Amax& amax) {
    return largest_lane(max(amax.even, shift_right<16>(amax.odd)));
  }
};

struct SourceBf16 : Source16 {
  static Columns load_columns(const std::byte* p) {
    const I16 raw = load_bits(p);
    return {from_bits(shift_left<16>(raw)), from_bits(raw & iset1(static_cast<std::int32_t>(0xffff0000U)))};
  }
  static float value(const Amax& amax) { return std::bit_cast<float>(magnitude(amax) << 16); }
};

struct SourceF16 : Source16 {
  // Moves exponent and mantissa into place and corrects the bias. A subnormal goes through the binade of
  // 2^-14, where subtracting 2^-14 normalizes it: multiplying it into place would cost a microcode assist a
  // vector.
  static V16 widen(I16 half) {
    const I16 magnitude = half & iset1(0x7fff);
    const I16 moved = shift_left<13>(magnitude);
    const I16 subnormal = bits(from_bits(moved + iset1(113 << 23)) - set1(0x1p-14F));
    const I16 finite = select_greater(iset1(0x400), magnitude, subnormal, moved + iset1(112 << 23));
    const I16 any = select_greater(magnitude, iset1(0x7bff), moved | iset1(0x7f800000), finite);
    return from_bits(any | (shift_left<16>(half) & iset1(static_cast<std::int32_t>(0x80000000U))));
  }
  static Columns load_columns(const std::byte* p) {
    const I16 raw = load_bits(p);
    return {widen(raw), widen(shift_right<16>(raw))};
  }
  static float value(const Amax& amax) { return f16_to_float(static_cast<std::uint16_t>(magnitude(amax))); }
};

// 32 columns at `p` of which only `cols` exist: where they do not all, a copy padded with zeros.
template <typename Source>
const std::byte* whole_panel(const std::byte* p, int cols, std::byte (&padded)[kPanelCols * Source::kBytes]) {
  if (cols == kPanelCols) return p;
  std::memset(padded, 0, sizeof padded);
  std::memcpy(padded, p, static_cast<std::size_t>(cols) * Source::kBytes);
  return padded;
}

struct Block {
  std::int64_t row;  // of its first element
  std::int64_t col;
  int rows;
  int cols;
  const std::byte* source;
};

// Blocks are counted row by row.
Block block_of(const WeightJob& job, std::int64_t index, int element_bytes) {
  const std::int64_t row = index / blocks_of(job.cols) * kBlock;
  const std::int64_t col = index % blocks_of(job.cols) * kBlock;
  return {row, col, static_cast<int>(std::min(kBlock, job.rows - row)),
          static_cast<int>(std::min(kBlock, job.cols - col)),
          job.source + row * job.row_bytes + col * element_bytes};
}

// Sixteen rows of codes or bf16 values, a pair a lane, into place. `Element` is the stored type.
template <typename Element>
void store_panel(const WeightJob& job, std::int64_t row, std::int64_t col, int rows, int cols,
                 const I16 pairs[kPanelRows]) {
  auto* const out =
      static_cast<Element*>(job.out) + element_offset(job.layout, job.rows, job.out_cols, row, col);
  const bool whole = cols == kPanelCols;
  constexpr auto store_line = [](void* to, I16 line) {
    if constexpr (sizeof(Element) == 1) {
      store_low_u16(to, line);
    } else {
      store_bits(to, line);
    }
  };
  if (job.layout == CodeLayout::kTiled) {
    constexpr std::size_t kPairBytes = 2 * kPanelRows * sizeof(Element);
    std::uint8_t partial[kPanelCols / 2 * kPairBytes];
    auto* const tile = whole ? reinterpret_cast<std::uint8_t*>(out) : partial;
    if constexpr (sizeof(Element) == 1) {
      store_tile_u16(pairs, tile);
    } else {
      store_tile_u32(pairs, tile);
    }
    if (!whole) std::memcpy(out, partial, static_cast<std::size_t>((cols + 1) / 2) * kPairBytes);
    return;
  }
  for (int r = 0; r < rows; ++r) {
    Element* const to = out + r * job.out_cols;
    if (whole) {
      store_line(to, pairs[r]);
      continue;
    }
    Element line[kPanelCols];
    store_line(line, pairs[r]);
    std::memcpy(to, line, static_cast<std::size_t>(cols) * sizeof(Element));
  }
}

template <typename Source>
float block_amax(const WeightJob& job, const Block& block) {
  std::byte padded[kPanelCols * Source::kBytes];
  Amax amax;
  for (int r = 0; r < block.rows; ++r) {
    const std::byte* const row = block.source + r * job.row_bytes;
    for (int c = 0; c < block.cols; c += kPanelCols)
      Source::update(
          amax, whole_panel<Source>(row + c * Source::kBytes, std::min(kPanelCols, block.cols - c), padded));
  }
  return Source::value(amax);
}

// Runs convert(Columns) → sixteen pairs over a block, sixteen rows at a time, and stores what it gives.
//
// While it computes it asks for the same places of the block that comes next: rows lie too far apart for the
// hardware to guess. This is worth half of the speed.
template <typename Source, typename Element, typename Convert>
void convert_block(const WeightJob& job, const Block& block, const Block& next, Convert convert) {
  std::byte padded[kPanelCols * Source::kBytes];
  for (int top = 0; top < block.rows; top += kPanelRows) {
    const int rows = std::min(kPanelRows, block.rows - top);
    for (int c = 0; c < block.cols; c += kPanelCols) {
      const int cols = std::min(kPanelCols, block.cols - c);
      const std::int64_t offset = top * job.row_bytes + c * Source::kBytes;
      I16 pairs[kPanelRows];
      for (int r = 0; r < rows; ++r) {
        const std::int64_t line = offset + r * job.row_bytes;
        for (int ahead = 0; ahead < kPanelCols * Source::kBytes; ahead += 64)
          __builtin_prefetch(next.source + line + ahead);
        pairs[r] = convert(Source::load_columns(whole_panel<Source>(block.source + line, cols, padded)));
      }
      for (int r = rows; r < kPanelRows; ++r) pairs[r] = iset1(0);
      store_panel<Element>(job, block.row + top, block.col + c, rows, cols, pairs);
    }
  }
}

// The code of each lane in its low 7 bits, junk above. |scaled| must be below 464, from where codes would
// saturate.
//
// Adding 1.5·2^(e+20), where 2^e is the value's binade but at least E4M3's smallest (2^-6), makes the FP32
// adder round to multiples of 2^(e-3), E4M3's last mantissa bit, normals and subnormals alike. The sum's low
// bits are then the multiple q, 8 … 16 for a normal, and the code is q + 8(e + 6). The shifted binade holds
// 8(e + 127); the 56 that the magic number carries in its low bits turns it into 8(e + 6) modulo 128.
I16 code_magnitudes(V16 scaled) {
  const I16 magnitude = bits(scaled) & iset1(0x7fffffff);
  const I16 binade = max(magnitude & iset1(0x7f800000), iset1((127 - 6) << 23));
  const V16 magic = from_bits(binade + iset1((20 << 23) | 0x400000 | 56));
  return bits(from_bits(magnitude) + magic) + shift_right<20>(binade);
}

struct ToCodes {
  V16 multiplier;
  I16 operator()(const Columns& columns) const {
    const V16 even = columns.even * multiplier;
    const V16 odd = columns.odd * multiplier;
    const I16 codes = select_bits(iset1(0xff), code_magnitudes(even), shift_left<8>(code_magnitudes(odd)));
    const I16 signs = select_bits(iset1(0xff), shift_right<24>(bits(even)), shift_right<16>(bits(odd)));
    return select_bits(iset1(0x7f7f), codes, signs);
  }
};

// Keeps the largest magnitude of the results, which tells whether one is not finite.
struct ToBf16 {
  Amax* amax;
  I16 operator()(const Columns& columns) const {
    const I16 pairs = round_to_bf16_bits(columns.even) | shift_left<16>(round_to_bf16_bits(columns.odd));
    amax->even = max(amax->even, pairs & iset1(0x7fff));
    amax->odd = max(amax->odd, pairs & iset1(0x7fffffff));
    return pairs;
  }
};

bool is_finite(float value) { return std::bit_cast<std::uint32_t>(value) < 0x7f800000U; }

template <typename Source>
bool quantize(const WeightJob& job, const Block& block, const Block& next) {
  const float amax = block_amax<Source>(job, block);
  if (!is_finite(amax)) return false;
  const Scale scale = scale_from_amax(amax, job.options);
  job.scales[block.row / kBlock * job.scale_stride + block.col / kBlock] = scale.scale;
  // No value saturates: |value · multiplier| is 448 and a few roundings at most.
  convert_block<Source, std::uint8_t>(job, block, next, ToCodes{set1(scale.multiplier)});
  return true;
}

template <typename Source>
bool store_bf16(const WeightJob& job, const Block& block, const Block& next) {
  Amax amax;
  convert_block<Source, bf16>(job, block, next, ToBf16{&amax});
  return is_finite(SourceBf16::value(amax));
}

template <typename Source>
bool for_blocks(bool (*work)(const WeightJob&, const Block&, const Block&), const WeightJob& job,
                std::int64_t begin, std::int64_t end) {
  bool finite = true;
  Block block = block_of(job, begin, Source::kBytes);
  for (std::int64_t b = begin; b < end && finite; ++b) {
    const Block next = block_of(job, std::min(b + 1, end - 1), Source::kBytes);
    finite = work(job, block, next);
    block = next;
  }
  finish_streaming();
  return finite;
}

bool quantize_blocks(const WeightJob& job, std::int64_t begin, std::int64_t end) {
  if (job.dtype == DType::kF32) return for_blocks<SourceF32>(quantize<SourceF32>, job, begin, end);
  if (job.dtype == DType::kF16) return for_blocks<SourceF16>(quantize<SourceF16>, job, begin, end);
  return for_blocks<SourceBf16>(quantize<SourceBf16>, job, begin, end);
}

bool store_bf16_blocks(const WeightJob& job, std::int64_t begin, std::int64_t end) {
  if (job.dtype == DType::kF32) return for_blocks<SourceF32>(store_bf16<SourceF32>, job, begin, end);
  if (job.dtype == DType::kF16) return for_blocks<SourceF16>(store_bf16<SourceF16>, job, begin, end);
  return for_blocks<SourceBf16>(store_bf16<SourceBf16>, job, begin, end);
}

}  // namespace

const WeightKernels kWeightKernels = {quantize_blocks, store_bf16_blocks};

}  // namespace octavo::OCTAVO_ISA_NS
