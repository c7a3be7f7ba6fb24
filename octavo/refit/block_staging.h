// Blocks of which only a part has come: a trainer's pieces need not end where 128×128 blocks do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <tuple>
#include <vector>

#include "octavo/base/tensor_view.h"
#include "octavo/model/weights.h"

namespace octavo {

// Keeps the values of such blocks, in FP32 (in which bf16 and f16 are exact), until the rest has come. A
// tensor cut into row pieces anywhere needs one row of blocks for each cut that is still open, 64 KiB a
// block.
class BlockStaging {
 public:
  // A block whose values are all there; its first element is (row, col) of the tensor.
  using Sink = std::function<void(std::int64_t row, std::int64_t col, const TensorView& block)>;

  // Takes those values of a piece, whose first element is (row, col), that lie in the block with the first
  // element (block_row, block_col). They have not come before. False: there is no room for a new block.
  bool add(const WeightEntry& entry, std::int64_t block_row, std::int64_t block_col, std::int64_t row,
           std::int64_t col, const TensorView& piece, const Sink& sink);

  void clear() { blocks_.clear(); }
  std::size_t bytes() const { return blocks_.size() * kBlockBytes; }
  static constexpr std::size_t kMaxBytes = std::size_t{48} << 20;

 private:
  static constexpr std::size_t kBlockBytes = kBlock * kBlock * sizeof(float);
  struct Block {
    std::vector<float> values;  // rows × cols of the block
    std::int64_t missing = 0;
  };
  using Key = std::tuple<const WeightEntry*, std::int64_t, std::int64_t>;
  std::map<Key, Block> blocks_;
};

}  // namespace octavo
