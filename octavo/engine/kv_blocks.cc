#include "octavo/engine/kv_blocks.h"

#include <cassert>

namespace octavo {

KvBlocks::KvBlocks(std::int64_t num_blocks) : blocks_(static_cast<std::size_t>(num_blocks)) {
  for (std::int64_t block = num_blocks - 1; block >= 0; --block)
    free_.push_back(static_cast<std::int32_t>(block));
}

std::optional<std::int32_t> KvBlocks::acquire() {
  std::int32_t block = 0;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else if (!idle_.empty()) {
    block = idle_.front();
    idle_.pop_front();
    at(block).kept = false;
    if (on_reclaim) on_reclaim(block);
  } else {
    return std::nullopt;
  }
  assert(at(block).owners == 0);
  at(block).owners = 1;
  return block;
}

void KvBlocks::share(std::int32_t block) {
  Block& state = at(block);
  assert(state.owners > 0 || state.kept);
  if (state.owners == 0) idle_.erase(state.idle_position);
  ++state.owners;
}

void KvBlocks::release(std::int32_t block) {
  Block& state = at(block);
  assert(state.owners > 0);
  if (--state.owners > 0) return;
  if (state.kept) {
    state.idle_position = idle_.insert(idle_.end(), block);
  } else {
    free_.push_back(block);
  }
}

void KvBlocks::keep(std::int32_t block) {
  assert(at(block).owners > 0);
  at(block).kept = true;
}

void KvBlocks::drop(std::int32_t block) {
  Block& state = at(block);
  assert(state.kept);
  state.kept = false;
  if (state.owners > 0) return;
  idle_.erase(state.idle_position);
  free_.push_back(block);
}

}  // namespace octavo
