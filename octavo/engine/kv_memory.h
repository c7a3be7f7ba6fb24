// The memory of the paged KV cache: for each layer one run of keys and one of values, in the backend's
// layout, all in one piece of the backend's storage.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "octavo/engine/engine_options.h"
#include "octavo/model/model.h"
#include "octavo/ops/ops.h"
#include "octavo/ops/storage.h"

namespace octavo {

// The options with kv_bytes settled for this model, whose weights are in place. Throws Error, with the
// arithmetic, where a GPU's share of memory leaves nothing, or more is asked for than the memory has.
EngineOptions with_kv_bytes(EngineOptions options, const Model& model);

class KvMemory {
 public:
  // With `poisonable`, one block more than asked for is made, which holds NaN bits.
  KvMemory(Storage& storage, std::int64_t num_layers, const KvGeometry& geometry, bool poisonable);

  // Bytes that one block takes in all layers, keys and values.
  static std::size_t block_bytes(std::int64_t num_layers, const KvGeometry& geometry);

  const std::vector<KvLayer>& layers() const { return layers_; }
  void copy(Ops& ops, std::int32_t from, std::int32_t to) const;
  // Gives the memory back to the system and takes it again, zeroed; the addresses stay.
  void sleep();
  void wake();
  // Fills a block with NaN bits, by way of the backend, which alone knows where a block's bytes are.
  void poison(Ops& ops, std::int32_t block) const;

 private:
  void fill_poison();

  Storage& storage_;
  KvGeometry geometry_;
  bool poisonable_;
  std::unique_ptr<Memory> memory_;
  std::vector<KvLayer> layers_;
};

}  // namespace octavo
