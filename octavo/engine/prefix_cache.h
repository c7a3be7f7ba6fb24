// Full KV blocks that can be used again by any sequence that begins with the same tokens.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "octavo/engine/kv_blocks.h"
#include "octavo/ops/ops.h"

namespace octavo {

// A block's key is the XXH3-128 of its parent's key and its own tokens; the first block's parent is the root,
// whose key is made of the weight version, so KV of other weights is never found. A hit is verified: tokens
// must be equal and the entry must have been made under the very entry that matched before it (serial numbers
// are never used twice), so by induction a hash collision can cost a hit but never serve a wrong block.
class PrefixCache {
 public:
  static constexpr std::int64_t kBlockSize = KvGeometry::block_size;

  // Place in a chain: the root, or a cached block.
  struct Link {
    std::array<std::uint64_t, 2> key{};
    std::uint64_t serial = 0;
  };

  // `blocks` must outlive the cache, which sets its on_reclaim.
  PrefixCache(KvBlocks& blocks, std::uint64_t weight_version);

  // Forgets everything and starts a new root. Held blocks stay with their owners.
  void reset(std::uint64_t weight_version);
  std::uint64_t weight_version() const { return weight_version_; }
  Link root() const { return root_; }
  std::size_t size() const { return entries_.size(); }

  // Blocks that hold the longest cached chain of full blocks of `tokens`, in order, with the link of the last
  // one. Each has one owner more: the caller.
  struct Match {
    std::vector<std::int32_t> blocks;
    Link last;
  };
  Match match(std::span<const std::int32_t> tokens);

  // Says that `block` (held by the caller) now holds the keys and values of these kBlockSize tokens after
  // `parent`. Where the same contents are cached already, that entry stays and `block` is not kept. Returns
  // the chain's next link.
  Link insert(const Link& parent, std::span<const std::int32_t> tokens, std::int32_t block);

 private:
  using Tokens = std::array<std::int32_t, kBlockSize>;
  struct Key {
    std::array<std::uint64_t, 2> bits;
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    std::size_t operator()(const Key& key) const { return static_cast<std::size_t>(key.bits[0]); }
  };
  struct Entry {
    Tokens tokens;
    std::uint64_t parent = 0;
    std::uint64_t serial = 0;
    std::int32_t block = 0;
  };
  static Key key_of(const Link& parent, std::span<const std::int32_t> tokens);
  static bool matches(const Entry& entry, const Link& parent, std::span<const std::int32_t> tokens);

  KvBlocks& blocks_;
  std::uint64_t weight_version_ = 0;
  std::uint64_t next_serial_ = 1;
  Link root_;
  std::unordered_map<Key, Entry, KeyHash> entries_;
  std::unordered_map<std::int32_t, Key> key_of_block_;
};

}  // namespace octavo
