// The memory of the paged KV cache: for each layer one buffer of keys and one of values, in the backend's
// layout.
#pragma once

#include <cstdint>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/ops/ops.h"

namespace octavo {

class KvMemory {
 public:
  // With `poisonable`, one block more than asked for is made, which holds NaN bits.
  KvMemory(std::int64_t num_layers, const KvGeometry& geometry, bool poisonable);

  // Bytes that one block takes in all layers, keys and values.
  static std::size_t block_bytes(std::int64_t num_layers, const KvGeometry& geometry);

  const std::vector<KvLayer>& layers() const { return layers_; }
  void copy(Ops& ops, std::int32_t from, std::int32_t to) const;
  // Fills a block with NaN bits, by way of the backend, which alone knows where a block's bytes are.
  void poison(Ops& ops, std::int32_t block) const;

 private:
  KvGeometry geometry_;
  std::vector<Buffer> buffers_;
  std::vector<KvLayer> layers_;
};

}  // namespace octavo
