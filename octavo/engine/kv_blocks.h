// Who uses which block of the paged KV cache. Knows nothing of what a block holds.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <optional>
#include <vector>

namespace octavo {

// A block is free, held by one or more owners, or idle: held by nobody, but its contents are worth keeping
// (the prefix cache said so) until the room is needed. Idle blocks are taken back in the order in which they
// became idle.
class KvBlocks {
 public:
  explicit KvBlocks(std::int64_t num_blocks);

  std::int64_t total() const { return static_cast<std::int64_t>(blocks_.size()); }
  // Blocks that acquire() can hand out: free and idle ones.
  std::int64_t available() const { return static_cast<std::int64_t>(free_.size() + idle_.size()); }
  std::int64_t owners(std::int32_t block) const { return blocks_[static_cast<std::size_t>(block)].owners; }

  // One block with one owner: a free one, else the one idle longest, which on_reclaim is told of. Nothing
  // when all are held.
  std::optional<std::int32_t> acquire();
  // One more owner for a held or idle block.
  void share(std::int32_t block);
  // One owner less. Callers give a sequence's blocks back last block first, so that chains are reclaimed from
  // their end.
  void release(std::int32_t block);

  // Whether the block goes idle instead of free when its last owner leaves. Dropping an idle block frees it.
  void keep(std::int32_t block);
  void drop(std::int32_t block);

  // Called with a block that is about to be handed out again although it was kept; it is no longer kept then.
  std::function<void(std::int32_t)> on_reclaim;

 private:
  struct Block {
    std::int64_t owners = 0;
    bool kept = false;
    std::list<std::int32_t>::iterator idle_position;
  };
  Block& at(std::int32_t block) { return blocks_[static_cast<std::size_t>(block)]; }

  std::vector<Block> blocks_;
  std::vector<std::int32_t> free_;
  std::list<std::int32_t> idle_;  // longest idle first
};

}  // namespace octavo
