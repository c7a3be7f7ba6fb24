// Where element (r, c) of a weight matrix lies in memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace octavo {

enum class CodeLayout {
  kRowMajor,
  kTiled,  // rows in tiles of 16, columns in pairs: the operand order of VDPBF16PS and of AMX tiles
};

// In a tiled matrix a tile of 16 rows is contiguous, and inside it column pair after column pair, each pair
// as 16 rows × 2 columns. Columns are padded to a multiple of 2, rows to a multiple of 16, with zero codes.
inline constexpr std::int64_t kTileRows = 16;

constexpr std::int64_t padded_cols(CodeLayout layout, std::int64_t cols) {
  return layout == CodeLayout::kTiled ? (cols + 1) / 2 * 2 : cols;
}
constexpr std::int64_t padded_rows(CodeLayout layout, std::int64_t rows) {
  return layout == CodeLayout::kTiled ? (rows + kTileRows - 1) / kTileRows * kTileRows : rows;
}

// How many elements (codes, or bf16 values) a [rows, cols] matrix takes, padding included.
constexpr std::size_t element_count(CodeLayout layout, std::int64_t rows, std::int64_t cols) {
  return static_cast<std::size_t>(padded_rows(layout, rows) * padded_cols(layout, cols));
}

// Where element (r, c) of a [rows, cols] matrix lies, in elements from its start.
constexpr std::size_t element_offset(CodeLayout layout, [[maybe_unused]] std::int64_t rows, std::int64_t cols,
                                     std::int64_t r, std::int64_t c) {
  if (layout == CodeLayout::kRowMajor) return static_cast<std::size_t>(r * cols + c);
  return static_cast<std::size_t>(r / kTileRows * kTileRows * padded_cols(layout, cols) +
                                  c / 2 * (2 * kTileRows) + r % kTileRows * 2 + c % 2);
}

}  // namespace octavo
