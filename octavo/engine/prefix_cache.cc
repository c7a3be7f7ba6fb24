#include "octavo/engine/prefix_cache.h"

#include <xxhash.h>

#include <algorithm>
#include <cassert>
#include <cstring>

namespace octavo {

PrefixCache::PrefixCache(KvBlocks& blocks, std::uint64_t weight_version) : blocks_(blocks) {
  blocks_.on_reclaim = [this](std::int32_t block) {
    const auto found = key_of_block_.find(block);
    assert(found != key_of_block_.end());
    entries_.erase(found->second);
    key_of_block_.erase(found);
  };
  reset(weight_version);
}

void PrefixCache::reset(std::uint64_t weight_version) {
  for (const auto& [block, key] : key_of_block_) blocks_.drop(block);
  key_of_block_.clear();
  entries_.clear();
  weight_version_ = weight_version;
  const XXH128_hash_t hash = XXH3_128bits(&weight_version, sizeof weight_version);
  root_ = {.key = {hash.low64, hash.high64}, .serial = next_serial_++};
}

PrefixCache::Key PrefixCache::key_of(const Link& parent, std::span<const std::int32_t> tokens) {
  struct {
    std::array<std::uint64_t, 2> parent;
    Tokens tokens;
  } input;
  static_assert(sizeof input == 16 + sizeof(Tokens));  // no padding: every byte is defined
  input.parent = parent.key;
  std::copy(tokens.begin(), tokens.end(), input.tokens.begin());
  const XXH128_hash_t hash = XXH3_128bits(&input, sizeof input);
  return {{hash.low64, hash.high64}};
}

bool PrefixCache::matches(const Entry& entry, const Link& parent, std::span<const std::int32_t> tokens) {
  return entry.parent == parent.serial && std::equal(tokens.begin(), tokens.end(), entry.tokens.begin());
}

PrefixCache::Match PrefixCache::match(std::span<const std::int32_t> tokens) {
  Match result{.blocks = {}, .last = root_};
  for (; tokens.size() >= kBlockSize; tokens = tokens.subspan(kBlockSize)) {
    const auto block_tokens = tokens.first(kBlockSize);
    const Key key = key_of(result.last, block_tokens);
    const auto found = entries_.find(key);
    if (found == entries_.end() || !matches(found->second, result.last, block_tokens)) break;
    blocks_.share(found->second.block);
    result.blocks.push_back(found->second.block);
    result.last = {.key = key.bits, .serial = found->second.serial};
  }
  return result;
}

PrefixCache::Link PrefixCache::insert(const Link& parent, std::span<const std::int32_t> tokens,
                                      std::int32_t block) {
  assert(tokens.size() == kBlockSize);
  const Key key = key_of(parent, tokens);
  auto found = entries_.find(key);
  if (found != entries_.end() && !matches(found->second, parent, tokens)) {
    // Its parent has been reclaimed, so nothing can reach it any more (or, next to impossibly, a collision).
    key_of_block_.erase(found->second.block);
    blocks_.drop(found->second.block);
    entries_.erase(found);
    found = entries_.end();
  }
  if (found == entries_.end()) {
    assert(!key_of_block_.contains(block));
    Entry entry{.tokens = {}, .parent = parent.serial, .serial = next_serial_++, .block = block};
    std::copy(tokens.begin(), tokens.end(), entry.tokens.begin());
    found = entries_.emplace(key, entry).first;
    key_of_block_.emplace(block, key);
    blocks_.keep(block);
  }
  return {.key = key.bits, .serial = found->second.serial};
}

}  // namespace octavo
