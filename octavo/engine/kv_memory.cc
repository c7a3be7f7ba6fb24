#include "octavo/engine/kv_memory.h"

#include <cstring>

namespace octavo {

KvMemory::KvMemory(std::int64_t num_layers, const KvGeometry& geometry, bool poisonable)
    : geometry_(geometry) {
  if (poisonable) ++geometry_.num_blocks;
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    Buffer keys(geometry_.layer_bytes());
    Buffer values(geometry_.layer_bytes());
    if (poisonable) {
      std::memset(keys.data(), 0xff, keys.bytes());
      std::memset(values.data(), 0xff, values.bytes());
    }
    layers_.push_back({.keys = keys.data(), .values = values.data()});
    buffers_.push_back(std::move(keys));
    buffers_.push_back(std::move(values));
  }
}

std::size_t KvMemory::block_bytes(std::int64_t num_layers, const KvGeometry& geometry) {
  KvGeometry one = geometry;
  one.num_blocks = 1;
  return 2 * static_cast<std::size_t>(num_layers) * one.layer_bytes();
}

void KvMemory::copy(Ops& ops, std::int32_t from, std::int32_t to) const {
  ops.copy_kv_block(layers_, geometry_, from, to);
}

void KvMemory::poison(Ops& ops, std::int32_t block) const {
  copy(ops, static_cast<std::int32_t>(geometry_.num_blocks - 1), block);
}

}  // namespace octavo
