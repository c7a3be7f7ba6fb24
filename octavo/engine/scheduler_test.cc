#include "octavo/engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <set>

namespace octavo {
namespace {

constexpr std::int64_t kBlockSize = KvGeometry::block_size;

// A model whose "keys and values" of a position are a hash of the tokens up to it and the weight version:
// whoever reads a wrong, stale or half-written block sees it.
class FakeKv {
 public:
  explicit FakeKv(std::int64_t blocks) : cells_(static_cast<std::size_t>(blocks * kBlockSize)) {}

  std::uint64_t version = 1;

  void compute(const Scheduler::Chunk& chunk, const KvBlocks& blocks) {
    const Sequence& sequence = *chunk.sequence;
    ASSERT_GE(static_cast<std::int64_t>(sequence.blocks.size()) * kBlockSize, chunk.end());
    std::uint64_t hash = version;
    for (std::int64_t p = 0; p < chunk.end(); ++p) {
      hash = (hash ^ static_cast<std::uint64_t>(sequence.tokens[static_cast<std::size_t>(p)])) *
             0x9E3779B97F4A7C15U;
      hash ^= hash >> 29;
      const std::int32_t block = sequence.blocks[static_cast<std::size_t>(p / kBlockSize)];
      std::uint64_t& cell = cells_[static_cast<std::size_t>(block * kBlockSize + p % kBlockSize)];
      if (p < chunk.first) {
        ASSERT_EQ(cell, hash) << "position " << p << " of block " << block << " holds something else";
      } else {
        ASSERT_EQ(blocks.owners(block), 1) << "writes into a block that others use";
        cell = hash;
      }
    }
  }
  void copy(std::int32_t from, std::int32_t to) {
    for (std::int64_t i = 0; i < kBlockSize; ++i)
      cells_[static_cast<std::size_t>(to * kBlockSize + i)] =
          cells_[static_cast<std::size_t>(from * kBlockSize + i)];
  }

 private:
  std::vector<std::uint64_t> cells_;
};

std::unique_ptr<Sequence> sequence_of(std::uint64_t age, std::int64_t length, std::int32_t token = 7) {
  auto sequence = std::make_unique<Sequence>();
  sequence->age = age;
  sequence->tokens.assign(static_cast<std::size_t>(length), token);
  return sequence;
}

struct Fixture {
  Fixture(std::int64_t num_blocks, const SchedulerOptions& options)
      : blocks(num_blocks), cache(blocks, 1), scheduler(options, blocks, cache), kv(num_blocks) {}
  Scheduler::Step step() {
    auto result = scheduler.schedule();
    for (const auto& chunk : result) kv.compute(chunk, blocks);
    scheduler.launched(result);
    scheduler.advance(result);
    return result;
  }
  KvBlocks blocks;
  PrefixCache cache;
  Scheduler scheduler;
  FakeKv kv;
};

TEST(Scheduler, PromptsAreChunkedAndDecodesGoFirst) {
  Fixture f(100, {.max_sequences = 4, .max_batch_tokens = 32, .prefix_cache = false});
  const auto decoding = sequence_of(0, 5);
  f.scheduler.add(*decoding);
  auto step = f.step();
  ASSERT_EQ(step.size(), 1U);
  EXPECT_EQ(step[0].logits_from, 4);
  decoding->tokens.push_back(1);
  const auto big = sequence_of(1, 70);
  const auto small = sequence_of(2, 10);
  f.scheduler.add(*small);
  f.scheduler.add(*big);
  std::vector<std::int64_t> big_counts;
  while (big->computed < 70) {
    step = f.step();
    EXPECT_EQ(step[0].sequence, decoding.get());
    EXPECT_EQ(step[0].count, 1);
    decoding->tokens.push_back(1);
    big_counts.push_back(step[1].count);
    EXPECT_EQ(step[1].logit_rows(), big->computed == 70 ? 1 : 0);
  }
  EXPECT_THAT(big_counts, testing::ElementsAre(31, 31, 8));
  EXPECT_EQ(step[2].sequence, small.get());  // took what the end of `big` left
  EXPECT_EQ(small->computed, 10);
  for (auto* s : {decoding.get(), big.get(), small.get()}) f.scheduler.remove(*s);
  EXPECT_EQ(f.blocks.available(), 100);
}

TEST(Scheduler, TheYoungestIsSentBackWhenBlocksRunOut) {
  Fixture f(4, {.max_sequences = 4, .max_batch_tokens = 64, .prefix_cache = false});
  const auto old = sequence_of(0, 16);
  const auto young = sequence_of(1, 16);
  f.scheduler.add(*old);
  f.scheduler.add(*young);
  f.step();
  EXPECT_EQ(f.scheduler.running(), 2);
  for (int i = 0; i < 17; ++i) {
    old->tokens.push_back(1);
    if (young->place == Sequence::Place::kRunning) young->tokens.push_back(1);
    f.step();
  }
  EXPECT_EQ(old->computed, 33);
  EXPECT_EQ(young->place, Sequence::Place::kWaiting);
  EXPECT_EQ(young->computed, 0);
  EXPECT_EQ(f.scheduler.preemptions(), 1);
  f.scheduler.remove(*old);
  f.step();
  EXPECT_EQ(young->computed, young->length());
}

TEST(Scheduler, SamplesShareFullBlocksAndCopyThePartialOne) {
  Fixture f(10, {.max_sequences = 2, .max_batch_tokens = 64, .prefix_cache = false});
  const auto leader = sequence_of(0, 35);
  f.scheduler.add(*leader);
  f.step();
  auto sibling = sequence_of(0, 35);
  auto third = sequence_of(0, 35);
  sibling->index = 1;
  third->index = 2;
  sibling->tokens.push_back(1);
  third->tokens.push_back(2);
  leader->tokens.push_back(3);
  const auto copy = f.scheduler.fork(*leader, *sibling);
  ASSERT_TRUE(copy);
  f.kv.copy(copy->first, copy->second);
  EXPECT_EQ(f.blocks.available(), 10 - 4);
  EXPECT_FALSE(f.scheduler.fork(*leader, *third));
  EXPECT_EQ(third->place, Sequence::Place::kWaiting);  // max_sequences
  EXPECT_EQ(f.step().size(), 2U);
  f.scheduler.remove(*leader);
  EXPECT_EQ(f.step().front().sequence, third.get());
  f.scheduler.remove(*sibling);
  f.scheduler.remove(*third);
  EXPECT_EQ(f.blocks.available(), 10);
}

TEST(Scheduler, ScoringIsLimitedByRowsAndUsesNoCachedPrefix) {
  Fixture f(20, {.max_sequences = 8, .max_batch_tokens = 64, .prefix_cache = true});
  const auto first = sequence_of(0, 40);
  f.scheduler.add(*first);
  f.step();
  f.scheduler.remove(*first);
  EXPECT_EQ(f.cache.size(), 2U);
  const auto scored = sequence_of(1, 20);
  scored->scoring = true;
  f.scheduler.add(*scored);
  std::int64_t rows = 0;
  while (scored->computed < 19) {
    const auto step = f.step();
    ASSERT_EQ(step.size(), 1U);
    EXPECT_LE(step[0].logit_rows(), 8);
    EXPECT_EQ(step[0].logit_rows(), step[0].count);
    rows += step[0].count;
  }
  EXPECT_EQ(rows, 19);
}

// Thousands of random steps with everything at once, checked against FakeKv, and conservation of blocks at
// the end.
TEST(Scheduler, RandomSchedulesNeverReadOrWriteTheWrongBlock) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int64_t>(rng() % static_cast<unsigned>(n));
  };
  for (int round = 0; round < 60 && !testing::Test::HasFailure(); ++round) {
    const std::int64_t max_sequences = 1 + below(8);
    const SchedulerOptions options{.max_sequences = max_sequences,
                                   .max_batch_tokens = max_sequences + below(40),
                                   .prefix_cache = below(4) != 0};
    const std::int64_t num_blocks = 6 + below(14);
    Fixture f(num_blocks, options);
    struct Group {
      std::vector<std::unique_ptr<Sequence>> samples;
      std::int64_t final_length = 0;
      bool forked = false;
    };
    std::vector<std::unique_ptr<Group>> groups;
    std::uint64_t arrivals = 0;
    std::int64_t finished = 0;
    const auto group_of = [&](const Sequence* s) {
      for (auto& group : groups)
        for (auto& sample : group->samples)
          if (sample.get() == s) return group.get();
      return static_cast<Group*>(nullptr);
    };
    for (int tick = 0; tick < 400 && !testing::Test::HasFailure(); ++tick) {
      if (tick < 250 && below(3) == 0) {
        auto group = std::make_unique<Group>();
        const std::int64_t prompt = 1 + below(50);
        group->final_length = std::min(prompt + 1 + below(30), num_blocks * kBlockSize);
        const auto shared_prefix = static_cast<std::int32_t>(below(2));
        const std::int64_t n = 1 + below(4);
        const bool scoring = prompt > 1 && below(6) == 0;
        for (std::int64_t i = 0; i < (scoring ? 1 : n); ++i) {
          group->samples.push_back(sequence_of(arrivals, prompt, shared_prefix));
          group->samples.back()->index = i;
          group->samples.back()->scoring = scoring;
        }
        ++arrivals;
        f.scheduler.add(*group->samples[0]);
        groups.push_back(std::move(group));
      }
      if (below(40) == 0 && !groups.empty()) {  // cancel one
        auto& group = groups[static_cast<std::size_t>(below(static_cast<std::int64_t>(groups.size())))];
        for (auto& sample : group->samples) f.scheduler.remove(*sample);
        std::erase(groups, group);
      }
      if (below(60) == 0) {
        f.kv.version += 1;
        f.scheduler.change_weights(f.kv.version, /*keep_kv=*/false);
      }
      const auto step = f.step();
      std::int64_t tokens = 0;
      std::int64_t rows = 0;
      std::set<const Sequence*> distinct;
      for (const auto& chunk : step) {
        tokens += chunk.count;
        rows += chunk.logit_rows();
        ASSERT_TRUE(distinct.insert(chunk.sequence).second);
        ASSERT_GT(chunk.count, 0);
      }
      ASSERT_LE(tokens, options.max_batch_tokens);
      ASSERT_LE(rows, options.max_sequences);
      ASSERT_LE(f.scheduler.running(), options.max_sequences);
      ASSERT_TRUE(!step.empty() || f.scheduler.idle()) << "no progress";
      for (const auto& chunk : step) {
        Sequence& sequence = *chunk.sequence;
        if (sequence.computed < sequence.needed()) continue;
        Group* group = group_of(&sequence);
        if (sequence.scoring) {
          f.scheduler.remove(sequence);
          ++finished;
          continue;
        }
        if (!group->forked) {
          group->forked = true;
          for (std::size_t i = 1; i < group->samples.size(); ++i) {
            group->samples[i]->tokens.push_back(static_cast<std::int32_t>(below(5)));
            if (const auto copy = f.scheduler.fork(sequence, *group->samples[i]))
              f.kv.copy(copy->first, copy->second);
          }
        }
        sequence.tokens.push_back(static_cast<std::int32_t>(below(5)));
        for (auto& sample : group->samples) {
          if (sample->length() >= group->final_length && sample->place != Sequence::Place::kOutside) {
            f.scheduler.remove(*sample);
            ++finished;
          }
        }
      }
    }
    EXPECT_GT(finished, 0);
    for (auto& group : groups)
      for (auto& sample : group->samples) f.scheduler.remove(*sample);
    EXPECT_EQ(f.blocks.available(), num_blocks);
    EXPECT_TRUE(f.scheduler.idle());
  }
}

}  // namespace
}  // namespace octavo
