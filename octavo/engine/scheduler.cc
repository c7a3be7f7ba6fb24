#include "octavo/engine/scheduler.h"

#include <algorithm>
#include <cassert>

namespace octavo {
namespace {

constexpr std::int64_t kBlockSize = KvGeometry::block_size;

bool older(const Sequence* a, const Sequence* b) {
  return a->age != b->age ? a->age < b->age : a->index < b->index;
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, KvBlocks& blocks, PrefixCache& cache)
    : options_(options), blocks_(blocks), cache_(cache) {
  assert(options.max_sequences >= 1 && options.max_batch_tokens >= options.max_sequences);
}

void Scheduler::insert_by_age(std::vector<Sequence*>& list, Sequence& sequence, Sequence::Place place) {
  list.insert(std::upper_bound(list.begin(), list.end(), &sequence, older), &sequence);
  sequence.place = place;
}

void Scheduler::add(Sequence& sequence) {
  assert(sequence.place == Sequence::Place::kOutside && sequence.blocks.empty() && sequence.needed() > 0);
  insert_by_age(waiting_, sequence, Sequence::Place::kWaiting);
}

void Scheduler::remove(Sequence& sequence) {
  if (sequence.place == Sequence::Place::kOutside) return;
  leave(sequence);
}

// Takes the sequence off its list and gives its blocks back, last first (see KvBlocks::release).
void Scheduler::leave(Sequence& sequence) {
  std::erase(sequence.place == Sequence::Place::kRunning ? running_ : waiting_, &sequence);
  sequence.place = Sequence::Place::kOutside;
  for (auto block = sequence.blocks.rbegin(); block != sequence.blocks.rend(); ++block)
    blocks_.release(*block);
  sequence.blocks.clear();
  sequence.computed = 0;
  sequence.cached_blocks = 0;
  sequence.cacheable = true;
}

void Scheduler::preempt(Sequence& sequence) {
  leave(sequence);
  add(sequence);
  ++preemptions_;
}

// How many tokens of the sequence the budgets allow. Takes them from the budgets.
std::int64_t Scheduler::take(const Sequence& sequence, Budget& budget) {
  std::int64_t count = std::min(sequence.needed() - sequence.computed, budget.tokens);
  if (sequence.scoring) {
    count = std::min(count, budget.rows);
    budget.rows -= count;
  } else if (count > 0 && sequence.computed + count == sequence.needed()) {
    if (budget.rows > 0) {
      --budget.rows;
    } else {
      --count;  // the last token waits for a step with a row for its logits
    }
  }
  budget.tokens -= count;
  return count;
}

Scheduler::Chunk Scheduler::chunk_of(Sequence& sequence, std::int64_t count) {
  const std::int64_t end = sequence.computed + count;
  std::int64_t logits_from = end;
  if (sequence.scoring) {
    logits_from = sequence.computed;
  } else if (end == sequence.needed()) {
    logits_from = end - 1;
  }
  return {.sequence = &sequence, .first = sequence.computed, .count = count, .logits_from = logits_from};
}

// Gives the sequence blocks for its first `tokens` tokens. False when the pool has run out.
bool Scheduler::cover(Sequence& sequence, std::int64_t tokens) {
  while (static_cast<std::int64_t>(sequence.blocks.size()) < KvGeometry::blocks_for(tokens)) {
    const auto block = blocks_.acquire();
    if (!block) return false;
    sequence.blocks.push_back(*block);
  }
  return true;
}

// Makes a waiting sequence a running one if there is room for all that it needs now, and one block for each
// running one to grow into: without that margin it would soon be sent back.
bool Scheduler::admit(Sequence& sequence) {
  PrefixCache::Match match{.blocks = {}, .last = cache_.root()};
  // At least one token is left to compute, to get logits from. Scoring wants the logits of all.
  if (options_.prefix_cache && !sequence.scoring)
    match = cache_.match(std::span(sequence.tokens).first(static_cast<std::size_t>(sequence.needed() - 1)));
  const auto matched = static_cast<std::int64_t>(match.blocks.size());
  if (blocks_.available() < KvGeometry::blocks_for(sequence.needed()) - matched + running()) {
    for (auto block = match.blocks.rbegin(); block != match.blocks.rend(); ++block) blocks_.release(*block);
    return false;
  }
  std::erase(waiting_, &sequence);
  insert_by_age(running_, sequence, Sequence::Place::kRunning);
  sequence.blocks = std::move(match.blocks);
  sequence.link = match.last;
  sequence.cached_blocks = matched;
  sequence.computed = matched * kBlockSize;
  prefix_hit_tokens_ += sequence.computed;
  return true;
}

Scheduler::Step Scheduler::schedule() {
  Budget budget{.tokens = options_.max_batch_tokens, .rows = options_.max_sequences};
  std::vector<std::int64_t> counts(running_.size());
  const auto lacks_one = [](const Sequence& s) { return !s.scoring && s.needed() - s.computed == 1; };
  for (std::size_t i = 0; i < running_.size(); ++i)
    if (lacks_one(*running_[i])) counts[i] = take(*running_[i], budget);
  for (std::size_t i = 0; i < running_.size(); ++i)
    if (!lacks_one(*running_[i])) counts[i] = take(*running_[i], budget);

  Step step;
  bool preempted = false;
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    while (i < running_.size() && !cover(sequence, sequence.computed + counts[i])) {
      preempt(*running_.back());
      preempted = true;
    }
    if (i < running_.size() && counts[i] > 0) step.push_back(chunk_of(sequence, counts[i]));
  }

  while (!preempted && budget.tokens > 0 && !waiting_.empty() && running() < options_.max_sequences) {
    Sequence& sequence = *waiting_.front();
    if (!admit(sequence)) break;
    const std::int64_t count = take(sequence, budget);
    const bool covered = cover(sequence, sequence.computed + count);
    assert(covered);
    static_cast<void>(covered);
    if (count > 0) step.push_back(chunk_of(sequence, count));
  }
  return step;
}

void Scheduler::launched(const Step& step) {
  for (const Chunk& chunk : step) chunk.sequence->computed = chunk.end();
}

void Scheduler::advance(const Step& step) {
  for (const Chunk& chunk : step) {
    Sequence& sequence = *chunk.sequence;
    if (sequence.computed < chunk.end()) continue;  // sent back, or gone
    if (!options_.prefix_cache || sequence.scoring || !sequence.cacheable) continue;
    while ((sequence.cached_blocks + 1) * kBlockSize <= chunk.end()) {
      const auto begin = static_cast<std::size_t>(sequence.cached_blocks * kBlockSize);
      sequence.link = cache_.insert(sequence.link, std::span(sequence.tokens).subspan(begin, kBlockSize),
                                    sequence.blocks[static_cast<std::size_t>(sequence.cached_blocks)]);
      ++sequence.cached_blocks;
    }
  }
}

std::optional<std::pair<std::int32_t, std::int32_t>> Scheduler::fork(const Sequence& leader,
                                                                     Sequence& sibling) {
  assert(leader.place == Sequence::Place::kRunning && sibling.place == Sequence::Place::kOutside);
  const std::int64_t full = leader.computed / kBlockSize;
  const bool partial = leader.computed % kBlockSize != 0;
  if (running() >= options_.max_sequences || (partial && blocks_.available() == 0)) {
    add(sibling);
    return std::nullopt;
  }
  insert_by_age(running_, sibling, Sequence::Place::kRunning);
  sibling.blocks.assign(leader.blocks.begin(), leader.blocks.begin() + full);
  for (const std::int32_t block : sibling.blocks) blocks_.share(block);
  sibling.computed = leader.computed;
  sibling.cached_blocks = leader.cached_blocks;
  sibling.link = leader.link;
  sibling.cacheable = leader.cacheable;
  if (!partial) return std::nullopt;
  sibling.blocks.push_back(blocks_.acquire().value());
  return std::pair{leader.blocks[static_cast<std::size_t>(full)], sibling.blocks.back()};
}

void Scheduler::change_weights(std::uint64_t weight_version, bool keep_kv) {
  for (Sequence* sequence : std::vector(running_)) {
    if (keep_kv && !sequence->scoring) {
      sequence->cacheable = false;
    } else {
      preempt(*sequence);
    }
  }
  cache_.reset(weight_version);
}

}  // namespace octavo
