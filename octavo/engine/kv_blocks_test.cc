#include "octavo/engine/kv_blocks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace octavo {
namespace {

TEST(KvBlocks, HandsOutEachBlockOnceAndThenNone) {
  KvBlocks blocks(3);
  std::set<std::int32_t> got;
  for (int i = 0; i < 3; ++i) got.insert(blocks.acquire().value());
  EXPECT_EQ(got, (std::set<std::int32_t>{0, 1, 2}));
  EXPECT_EQ(blocks.acquire(), std::nullopt);
  blocks.release(1);
  EXPECT_EQ(blocks.available(), 1);
  EXPECT_EQ(blocks.acquire(), 1);
}

TEST(KvBlocks, KeptBlocksAreReclaimedLongestIdleFirst) {
  KvBlocks blocks(3);
  std::vector<std::int32_t> reclaimed;
  blocks.on_reclaim = [&](std::int32_t block) { reclaimed.push_back(block); };
  for (int i = 0; i < 3; ++i) blocks.keep(blocks.acquire().value());
  blocks.release(2);
  blocks.release(0);
  blocks.release(1);
  EXPECT_EQ(blocks.available(), 3);
  blocks.share(2);  // used again: now the last to go
  blocks.release(2);
  for (int i = 0; i < 3; ++i) blocks.acquire();
  EXPECT_THAT(reclaimed, testing::ElementsAre(0, 1, 2));
}

TEST(KvBlocks, DroppedIdleBlocksAreFree) {
  KvBlocks blocks(1);
  blocks.on_reclaim = [](std::int32_t) { FAIL() << "a dropped block is free, not idle"; };
  blocks.keep(blocks.acquire().value());
  blocks.release(0);
  blocks.drop(0);
  EXPECT_EQ(blocks.acquire(), 0);
}

TEST(KvBlocks, RandomUseAgreesWithAMap) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  constexpr int kBlocks = 20;
  KvBlocks blocks(kBlocks);
  std::map<std::int32_t, int> owners;  // held blocks
  std::set<std::int32_t> kept;
  blocks.on_reclaim = [&](std::int32_t block) {
    EXPECT_EQ(owners.count(block), 0U);
    EXPECT_EQ(kept.erase(block), 1U);
  };
  const auto any_held = [&] {
    return std::next(owners.begin(), static_cast<long>(rng() % owners.size()))->first;
  };
  for (int i = 0; i < 20000; ++i) {
    switch (rng() % 5) {
      case 0: {
        const auto block = blocks.acquire();
        ASSERT_EQ(block.has_value(), owners.size() < kBlocks);
        if (block) {
          ASSERT_TRUE(owners.emplace(*block, 1).second);
        }
        break;
      }
      case 1:
        if (!owners.empty()) {
          const auto block = any_held();
          blocks.share(block);
          ++owners[block];
        }
        break;
      case 2:
        if (!owners.empty()) {
          const auto block = any_held();
          blocks.release(block);
          if (--owners[block] == 0) owners.erase(block);
        }
        break;
      case 3:
        if (!owners.empty()) {
          const auto block = any_held();
          blocks.keep(block);
          kept.insert(block);
        }
        break;
      default:
        if (!kept.empty()) {
          blocks.drop(*kept.begin());
          kept.erase(kept.begin());
        }
    }
    ASSERT_EQ(blocks.available(), kBlocks - static_cast<int>(owners.size()));
    for (const auto& [block, count] : owners) ASSERT_EQ(blocks.owners(block), count);
  }
}

}  // namespace
}  // namespace octavo
