#include "octavo/engine/prefix_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr std::int64_t kSize = PrefixCache::kBlockSize;

std::vector<std::int32_t> counting(std::int64_t count, std::int32_t from = 0) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

// Caches every full block of `tokens` under one chain and gives the blocks back, last first.
std::vector<std::int32_t> cache_all(KvBlocks& blocks, PrefixCache& cache,
                                    std::span<const std::int32_t> tokens) {
  std::vector<std::int32_t> used;
  auto link = cache.root();
  for (; static_cast<std::int64_t>(tokens.size()) >= kSize; tokens = tokens.subspan(kSize)) {
    used.push_back(blocks.acquire().value());
    link = cache.insert(link, tokens.first(kSize), used.back());
  }
  for (auto block = used.rbegin(); block != used.rend(); ++block) blocks.release(*block);
  return used;
}

std::vector<std::int32_t> matched(KvBlocks& blocks, PrefixCache& cache,
                                  std::span<const std::int32_t> tokens) {
  auto match = cache.match(tokens);
  for (auto block = match.blocks.rbegin(); block != match.blocks.rend(); ++block) blocks.release(*block);
  return match.blocks;
}

TEST(PrefixCache, FindsTheLongestChainOfFullBlocks) {
  KvBlocks blocks(8);
  PrefixCache cache(blocks, 1);
  const auto tokens = counting(3 * kSize + 5);
  const auto used = cache_all(blocks, cache, tokens);
  ASSERT_EQ(used.size(), 3U);
  EXPECT_EQ(matched(blocks, cache, tokens), used);
  EXPECT_THAT(matched(blocks, cache, counting(2 * kSize - 1)), ElementsAre(used[0]));
  auto fork = tokens;
  fork[kSize + 3] = 999;
  EXPECT_THAT(matched(blocks, cache, fork), ElementsAre(used[0]));
  fork = tokens;
  fork[0] = 999;
  EXPECT_THAT(matched(blocks, cache, fork), IsEmpty());
  EXPECT_EQ(blocks.available(), 8);
}

TEST(PrefixCache, ABlockIsFoundOnlyBehindItsOwnPrefix) {
  KvBlocks blocks(8);
  PrefixCache cache(blocks, 1);
  cache_all(blocks, cache, counting(2 * kSize));
  EXPECT_THAT(matched(blocks, cache, counting(kSize, kSize)), IsEmpty());
}

TEST(PrefixCache, MatchedBlocksAreHeldAgainstReclaim) {
  KvBlocks blocks(2);
  PrefixCache cache(blocks, 1);
  const auto used = cache_all(blocks, cache, counting(2 * kSize));
  const auto match = cache.match(counting(kSize));
  EXPECT_EQ(blocks.acquire(), used[1]);  // the only one left to reclaim
  EXPECT_EQ(blocks.acquire(), std::nullopt);
  EXPECT_EQ(cache.size(), 1U);
}

TEST(PrefixCache, ChainsAreReclaimedFromTheirEnd) {
  KvBlocks blocks(3);
  PrefixCache cache(blocks, 1);
  const auto used = cache_all(blocks, cache, counting(3 * kSize));
  EXPECT_EQ(blocks.acquire(), used[2]);
  EXPECT_THAT(matched(blocks, cache, counting(3 * kSize)), ElementsAre(used[0], used[1]));
}

TEST(PrefixCache, AnotherWeightVersionFindsNothing) {
  KvBlocks blocks(4);
  PrefixCache cache(blocks, 1);
  const auto old_root = cache.root();
  const auto held = blocks.acquire().value();
  cache.insert(old_root, counting(kSize), held);
  cache_all(blocks, cache, counting(2 * kSize, 1000));
  cache.reset(2);
  EXPECT_NE(cache.root().key, old_root.key);
  EXPECT_EQ(cache.size(), 0U);
  EXPECT_THAT(matched(blocks, cache, counting(kSize)), IsEmpty());
  EXPECT_EQ(blocks.available(), 3);
  blocks.release(held);
  EXPECT_EQ(blocks.available(), 4);
  // The same version again is still a new root: what lay under the old one is not resurrected.
  cache.reset(1);
  EXPECT_EQ(cache.root().key, old_root.key);
  cache.insert(old_root, counting(kSize), blocks.acquire().value());
  EXPECT_THAT(matched(blocks, cache, counting(kSize)), IsEmpty());
}

TEST(PrefixCache, TheFirstOfTwoEqualBlocksStaysAndChildrenOfBothMeet) {
  KvBlocks blocks(4);
  PrefixCache cache(blocks, 1);
  const auto tokens = counting(2 * kSize);
  const auto first = blocks.acquire().value();
  const auto second = blocks.acquire().value();
  const auto child = blocks.acquire().value();
  const std::span<const std::int32_t> view = tokens;
  const auto link = cache.insert(cache.root(), view.first(kSize), first);
  const auto same = cache.insert(cache.root(), view.first(kSize), second);
  EXPECT_EQ(link.serial, same.serial);
  cache.insert(same, view.subspan(kSize), child);
  EXPECT_THAT(matched(blocks, cache, tokens), ElementsAre(first, child));
  blocks.release(second);
  EXPECT_EQ(blocks.available(), 2);  // not kept
}

// A child whose parent was reclaimed and cached anew has an unknown parent: it must not be served (its
// parent's entry is another one), and the place can be taken again.
TEST(PrefixCache, OrphansAreNotServedAndCanBeReplaced) {
  KvBlocks blocks(3);
  PrefixCache cache(blocks, 1);
  const auto tokens = counting(2 * kSize);
  const std::span<const std::int32_t> view = tokens;
  const auto parent = blocks.acquire().value();
  const auto child = blocks.acquire().value();
  const auto link = cache.insert(cache.root(), view.first(kSize), parent);
  cache.insert(link, view.subspan(kSize), child);
  blocks.release(parent);                       // in the wrong order, so that the parent goes first
  const auto third = blocks.acquire().value();  // the free one
  EXPECT_EQ(blocks.acquire(), parent);
  const auto again = cache.insert(cache.root(), view.first(kSize), parent);
  EXPECT_THAT(matched(blocks, cache, tokens), ElementsAre(parent));
  EXPECT_NE(cache.insert(again, view.subspan(kSize), third).serial, 0U);
  EXPECT_EQ(matched(blocks, cache, tokens).size(), 2U);
}

}  // namespace
}  // namespace octavo
