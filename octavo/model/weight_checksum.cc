#include "octavo/model/weight_checksum.h"

#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <cstring>

namespace octavo {
namespace {

constexpr std::int64_t kWord = 8;

// The bytes of a row-major row, from its first word on.
std::uint64_t sum_of_row(std::uint64_t seed, std::uint64_t first_word, const std::byte* row,
                         std::int64_t bytes) {
  std::uint64_t sum = 0;
  for (std::int64_t begin = 0; begin < bytes; begin += kWord) {
    std::uint64_t word = 0;
    std::memcpy(&word, row + begin, static_cast<std::size_t>(std::min(kWord, bytes - begin)));
    sum += word_hash(seed, first_word++, word);
  }
  return sum;
}

// A row of a tiled matrix, whose column pairs lie a tile's rows apart.
template <typename Pair>
std::uint64_t sum_of_tiled_row(std::uint64_t seed, std::uint64_t first_word, const std::byte* first_pair,
                               std::int64_t pairs) {
  constexpr std::int64_t kPairs = kWord / sizeof(Pair);
  const auto pair_at = [&](std::int64_t p) {
    Pair pair;
    std::memcpy(&pair, first_pair + p * kTileRows * static_cast<std::int64_t>(sizeof(Pair)), sizeof pair);
    return std::uint64_t{pair};
  };
  std::uint64_t sum = 0;
  std::int64_t begin = 0;
  for (; begin + kPairs <= pairs; begin += kPairs) {
    std::uint64_t word = 0;
    for (std::int64_t p = 0; p < kPairs; ++p)
      word |= pair_at(begin + p) << (8 * static_cast<std::int64_t>(sizeof(Pair)) * p);
    sum += word_hash(seed, first_word++, word);
  }
  if (begin == pairs) return sum;
  std::uint64_t word = 0;
  for (std::int64_t p = 0; begin + p < pairs; ++p)
    word |= pair_at(begin + p) << (8 * static_cast<std::int64_t>(sizeof(Pair)) * p);
  return sum + word_hash(seed, first_word, word);
}

}  // namespace

std::uint64_t checksum_seed(std::string_view name) { return XXH3_64bits(name.data(), name.size()); }

std::uint64_t checksum_of_piece(const WeightPlace& place, std::int64_t row, std::int64_t col,
                                std::int64_t rows, std::int64_t cols, CodeLayout layout, const void* data,
                                const float* scales, ThreadPool& pool) {
  const auto* bytes = static_cast<const std::byte*>(data);
  const std::int64_t element = place.element_bytes();
  const std::int64_t words = (place.cols * element + kWord - 1) / kWord;  // of a whole row
  const std::int64_t first_word = col * element / kWord;
  const bool tiled = layout == CodeLayout::kTiled && place.form != WeightPlace::Form::kF32;
  std::atomic<std::uint64_t> total = 0;
  pool.parallel_for(rows, kBlock, [&](std::int64_t begin, std::int64_t end) {
    std::uint64_t sum = 0;
    for (std::int64_t r = begin; r < end; ++r) {
      const auto number = static_cast<std::uint64_t>((row + r) * words + first_word);
      const std::byte* first = bytes + static_cast<std::int64_t>(element_offset(
                                           tiled ? layout : CodeLayout::kRowMajor, rows, cols, r, 0)) *
                                           element;
      if (!tiled) {
        sum += sum_of_row(place.seed, number, first, cols * element);
      } else if (element == 1) {
        sum += sum_of_tiled_row<std::uint16_t>(place.seed, number, first, (cols + 1) / 2);
      } else {
        sum += sum_of_tiled_row<std::uint32_t>(place.seed, number, first, (cols + 1) / 2);
      }
    }
    total += sum;
  });
  if (place.form != WeightPlace::Form::kE4M3) return total;
  // Scales: one FP32 a block; words of two would tie blocks together that may come apart.
  for (std::int64_t r = 0; r < blocks_of(rows); ++r) {
    for (std::int64_t c = 0; c < blocks_of(cols); ++c) {
      const std::int64_t number = (row / kBlock + r) * blocks_of(place.cols) + col / kBlock + c;
      std::uint64_t word = 0;
      std::memcpy(&word, scales + r * blocks_of(cols) + c, sizeof(float));
      total += word_hash(place.scale_seed, static_cast<std::uint64_t>(number), word);
    }
  }
  return total;
}

}  // namespace octavo
