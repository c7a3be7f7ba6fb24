// Weight blocks to codes or bf16, on sixteen lanes; compiled once for each instruction set.
//
// A block is read from memory once: 128×128 bf16 values are 32 KiB, which the second pass finds in the cache.
// Both passes take 32 columns at a time as sixteen column pairs, the even column and the odd one in a vector
// each, because a pair is the unit of the tiled layout, and as two adjacent bytes also what row-major order
// wants.

#include <algorithm>
#include <iterator>

#include "octavo/quant/pair_tiles.h"
#include "octavo/quant/weight_kernels.h"

namespace octavo::OCTAVO_ISA_NS {
namespace {

// Magnitudes of 32 columns, and their signs on top of the words (16-bit halves) of lanes, the even column's
// below.
struct Columns {
  V16 even;
  V16 odd;
  I16 signs;
};

// Lanes, or their words, are magnitude bits; those of infinities and NaN are larger than any finite value's.
template <typename Integer>
Integer largest(I16 magnitudes) {
  Integer values[sizeof(I16) / sizeof(Integer)];
  store_bits(values, magnitudes);
  return *std::max_element(std::begin(values), std::end(values));
}

// A source type says how 32 columns are loaded, how they enter the running maxima of magnitude bits, and what
// these amount to.
struct SourceF32 {
  static constexpr int kBytes = 4;
  static Columns load_columns(const std::byte* p) {
    V16 even;
    V16 odd;
    split_even_odd(from_bits(load_bits(p)), from_bits(load_bits(p + 64)), even, odd);
    return {abs(even), abs(odd), interleave_words(shift_right<16>(bits(even)), shift_right<16>(bits(odd)))};
  }
  static void update(I16& amax, const std::byte* p) {
    const I16 both = max(load_bits(p) & iset1(0x7fffffff), load_bits(p + 64) & iset1(0x7fffffff));
    amax = max(amax, both);
  }
  static float value(I16 amax) { return std::bit_cast<float>(largest<std::int32_t>(amax)); }
};

// Two 16-bit values in a lane: the even column below, the odd one above.
struct Source16 {
  static constexpr int kBytes = 2;
  static void update(I16& amax, const std::byte* p) {
    amax = max_words(amax, load_bits(p) & iset1(0x7fff7fff));
  }
};

struct SourceBf16 : Source16 {
  static Columns load_columns(const std::byte* p) {
    const I16 raw = load_bits(p);
    return {from_bits(shift_left<16>(raw & iset1(0x7fff))), from_bits(raw & iset1(0x7fff0000)), raw};
  }
  static float value(I16 amax) { return std::bit_cast<float>(largest<std::int16_t>(amax) << 16); }
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
    return from_bits(select_greater(magnitude, iset1(0x7bff), moved | iset1(0x7f800000), finite));
  }
  static Columns load_columns(const std::byte* p) {
    const I16 raw = load_bits(p);
    return {widen(raw), widen(shift_right<16>(raw)), raw};
  }
  static float value(I16 amax) {
    return f16_to_float(static_cast<std::uint16_t>(largest<std::int16_t>(amax)));
  }
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

// Sixteen rows of 32 columns into place: of codes two rows a line (twin_rows), of bf16 values one, a pair a
// lane. `Element` is the stored type.
template <typename Element>
void store_panel(const WeightJob& job, std::int64_t row, std::int64_t col, int rows, int cols,
                 const I16 lines[kPanelRows]) {
  auto* const out =
      static_cast<Element*>(job.out) + element_offset(job.layout, job.rows, job.out_cols, row, col);
  const bool whole = cols == kPanelCols;
  if (job.layout == CodeLayout::kTiled) {
    constexpr std::size_t kPairBytes = 2 * kPanelRows * sizeof(Element);
    std::uint8_t partial[kPanelCols / 2 * kPairBytes];
    auto* const tile = whole ? reinterpret_cast<std::uint8_t*>(out) : partial;
    if constexpr (sizeof(Element) == 1) {
      store_tile_u16(lines, tile);
    } else {
      store_tile_u32(lines, tile);
    }
    if (!whole) std::memcpy(out, partial, static_cast<std::size_t>((cols + 1) / 2) * kPairBytes);
    return;
  }
  const auto store_row = [&](Element* to, int r) {
    if constexpr (sizeof(Element) == 1) {
      const I16 twins = lines[r / 2];
      store_low_u16(to, r % 2 == 0 ? twins : shift_right<16>(twins));
    } else {
      store_bits(to, lines[r]);
    }
  };
  for (int r = 0; r < rows; ++r) {
    Element* const to = out + r * job.out_cols;
    if (whole) {
      store_row(to, r);
      continue;
    }
    Element line[kPanelCols];
    store_row(line, r);
    std::memcpy(to, line, static_cast<std::size_t>(cols) * sizeof(Element));
  }
}

template <typename Source>
float block_amax(const WeightJob& job, const Block& block) {
  std::byte padded[kPanelCols * Source::kBytes];
  I16 amax = iset1(0);
  for (int r = 0; r < block.rows; ++r) {
    const std::byte* const row = block.source + r * job.row_bytes;
    for (int c = 0; c < block.cols; c += kPanelCols)
      Source::update(
          amax, whole_panel<Source>(row + c * Source::kBytes, std::min(kPanelCols, block.cols - c), padded));
  }
  return Source::value(amax);
}

// Converts a block, sixteen rows of 32 columns at a time, and stores what it gives.
//
// While it computes it asks for the same places of the block that comes next: rows lie too far apart for the
// hardware to guess. This is worth half of the speed.
template <typename Source, typename Target>
void convert_block(const WeightJob& job, const Block& block, const Block& next, Target& target) {
  for (int top = 0; top < block.rows; top += kPanelRows) {
    const int rows = std::min(kPanelRows, block.rows - top);
    for (int c = 0; c < block.cols; c += kPanelCols) {
      const int cols = std::min(kPanelCols, block.cols - c);
      const auto load_row = [&](int r) {
        static constexpr std::byte kZeros[kPanelCols * Source::kBytes] = {};
        if (r >= rows) return Source::load_columns(kZeros);
        std::byte padded[kPanelCols * Source::kBytes];
        const std::int64_t at = (top + r) * job.row_bytes + c * Source::kBytes;
        for (int ahead = 0; ahead < kPanelCols * Source::kBytes; ahead += 64)
          __builtin_prefetch(next.source + at + ahead);
        return Source::load_columns(whole_panel<Source>(block.source + at, cols, padded));
      };
      I16 lines[kPanelRows];
      for (int r = 0; r < kPanelRows; r += 2) target.two_rows(load_row(r), load_row(r + 1), lines, r);
      store_panel<typename Target::Element>(job, block.row + top, block.col + c, rows, cols, lines);
    }
  }
}

// The code of each magnitude in its low 7 bits, junk above. It must be below 464, from where codes would
// saturate.
//
// Adding 1.5·2^(e+20), where 2^e is the value's binade but at least E4M3's smallest (2^-6), makes the FP32
// adder round to multiples of 2^(e-3), E4M3's last mantissa bit, normals and subnormals alike. The sum's low
// bits are then the multiple q, 8 … 16 for a normal, and the code is q + 8(e + 6). The shifted binade holds
// 8(e + 127); the 56 that the magic number carries in its low bits turns it into 8(e + 6) modulo 128.
I16 code_magnitudes(V16 scaled) {
  const I16 binade = max(bits(scaled) & iset1(0x7f800000), iset1((127 - 6) << 23));
  const V16 magic = from_bits(binade + iset1((20 << 23) | 0x400000 | 56));
  return bits(scaled + magic) + shift_right<20>(binade);
}

struct ToCodes {
  using Element = std::uint8_t;
  V16 multiplier;

  I16 codes(const Columns& columns) const {
    return interleave_words(code_magnitudes(columns.even * multiplier),
                            code_magnitudes(columns.odd * multiplier));
  }
  void two_rows(const Columns& a, const Columns& b, I16 lines[kPanelRows], int r) const {
    lines[r / 2] = twin_rows(codes(a), codes(b), a.signs, b.signs);
  }
};

// Keeps the largest magnitude of the results, which tells whether one is not finite.
struct ToBf16 {
  using Element = bf16;
  I16 amax = iset1(0);

  I16 values(const Columns& columns) {
    const I16 magnitudes =
        interleave_words(round_to_bf16_bits(columns.even), round_to_bf16_bits(columns.odd));
    amax = max_words(amax, magnitudes);
    return magnitudes | (columns.signs & iset1(static_cast<std::int32_t>(0x80008000U)));
  }
  void two_rows(const Columns& a, const Columns& b, I16 lines[kPanelRows], int r) {
    lines[r] = values(a);
    lines[r + 1] = values(b);
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
  const ToCodes to_codes{set1(scale.multiplier)};
  convert_block<Source>(job, block, next, to_codes);
  return true;
}

template <typename Source>
bool store_bf16(const WeightJob& job, const Block& block, const Block& next) {
  ToBf16 to_bf16;
  convert_block<Source>(job, block, next, to_bf16);
  return is_finite(SourceBf16::value(to_bf16.amax));
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
