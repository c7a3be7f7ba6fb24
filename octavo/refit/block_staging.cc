#include "octavo/refit/block_staging.h"

#include <algorithm>

#include "octavo/quant/element.h"

namespace octavo {

bool BlockStaging::add(const WeightEntry& entry, std::int64_t block_row, std::int64_t block_col,
                       std::int64_t row, std::int64_t col, const TensorView& piece, const Sink& sink) {
  const std::int64_t rows = std::min(kBlock, entry.place.rows - block_row);
  const std::int64_t cols = std::min(kBlock, entry.place.cols - block_col);
  const Key key{&entry, block_row, block_col};
  auto found = blocks_.find(key);
  if (found == blocks_.end()) {
    if (bytes() + kBlockBytes > kMaxBytes) return false;
    found =
        blocks_.emplace(key, Block{std::vector<float>(static_cast<std::size_t>(rows * cols)), rows * cols})
            .first;
  }
  Block& block = found->second;
  const std::int64_t row_end = std::min(block_row + rows, row + piece.rows());
  const std::int64_t col_end = std::min(block_col + cols, col + piece.cols());
  for (std::int64_t r = std::max(block_row, row); r < row_end; ++r) {
    for (std::int64_t c = std::max(block_col, col); c < col_end; ++c) {
      block.values[static_cast<std::size_t>((r - block_row) * cols + c - block_col)] =
          element_as_float(piece, r - row, c - col);
      --block.missing;
    }
  }
  if (block.missing > 0) return true;
  sink(block_row, block_col, {block.values.data(), DType::kF32, {rows, cols}, 0});
  blocks_.erase(found);
  return true;
}

}  // namespace octavo
