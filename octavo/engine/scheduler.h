// Decides which tokens of which sequences the next step computes, and where their keys and values go.
//
// The verbs: add() a sequence, schedule() a step, say when it has been launched() and when to advance() past
// it, remove() a sequence. There are no phases of prefill and decode: a sequence has tokens that are not
// computed yet, many or one, and a step takes as many as its budgets allow. A step is filled in this order:
//   1. one token for each running sequence that lacks just one (a decode is never held up by somebody's long
//   prompt);
//   2. chunks for the other running sequences, oldest first;
//   3. waiting sequences, oldest first, when there is a place, budget, and room for all that they need now.
// When a running sequence finds no block, the youngest running one goes back to waiting and its blocks to the
// pool; it is computed again later, to the same bits. The oldest sequence is never sent back for a younger
// one, so there is always progress, provided that each sequence alone fits into the pool, which the engine
// checks at submit.
//
// Knows nothing of models, sampling or threads. Sequences belong to the caller and must be removed before
// they die.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "octavo/engine/kv_blocks.h"
#include "octavo/engine/prefix_cache.h"
#include "octavo/engine/sequence.h"

namespace octavo {

struct SchedulerOptions {
  std::int64_t max_sequences = 64;      // running at the same time; also rows of logits in a step
  std::int64_t max_batch_tokens = 512;  // computed in a step; at least max_sequences
  bool prefix_cache = true;
};

class Scheduler {
 public:
  // Tokens [first, first + count) of a sequence; logits are wanted of those from logits_from on.
  struct Chunk {
    Sequence* sequence = nullptr;
    std::int64_t first = 0;
    std::int64_t count = 0;
    std::int64_t logits_from = 0;

    std::int64_t end() const { return first + count; }
    std::int64_t logit_rows() const { return end() - logits_from; }
  };
  using Step = std::vector<Chunk>;

  Scheduler(const SchedulerOptions& options, KvBlocks& blocks, PrefixCache& cache);

  void add(Sequence& sequence);
  Step schedule();
  // The step is being computed: what comes next builds on its keys and values.
  void launched(const Step& step);
  // It has been computed, and all tokens of its chunks are known. Sequences may have gone on, or left.
  void advance(const Step& step);
  void remove(Sequence& sequence);

  // Lets `sibling`, whose prompt is the whole of what `leader` has computed, run on the leader's blocks: full
  // ones are shared, and of a partly filled last one the returned (from, to) is to be copied. Without a place
  // or a block for it, the sibling is added to the waiting ones, to compute for itself.
  std::optional<std::pair<std::int32_t, std::int32_t>> fork(const Sequence& leader, Sequence& sibling);

  // After a change of weights, with the step in flight done: forgets all cached prefixes. Running sequences
  // keep their keys and values (and add nothing to the prefix cache any more), or compute them again.
  void change_weights(std::uint64_t weight_version, bool keep_kv);

  bool idle() const { return running_.empty() && waiting_.empty(); }
  std::int64_t running() const { return static_cast<std::int64_t>(running_.size()); }
  std::int64_t waiting() const { return static_cast<std::int64_t>(waiting_.size()); }
  std::int64_t preemptions() const { return preemptions_; }
  std::int64_t prefix_hit_tokens() const { return prefix_hit_tokens_; }

 private:
  struct Budget {
    std::int64_t tokens;
    std::int64_t rows;
  };
  static std::int64_t take(const Sequence& sequence, Budget& budget);
  static Chunk chunk_of(Sequence& sequence, std::int64_t count);
  bool cover(Sequence& sequence, std::int64_t tokens);
  bool admit(Sequence& sequence);
  void leave(Sequence& sequence);
  void preempt(Sequence& sequence);
  void insert_by_age(std::vector<Sequence*>& list, Sequence& sequence, Sequence::Place place);

  SchedulerOptions options_;
  KvBlocks& blocks_;
  PrefixCache& cache_;
  std::vector<Sequence*> running_;  // oldest first
  std::vector<Sequence*> waiting_;  // oldest first
  std::int64_t preemptions_ = 0;
  std::int64_t prefix_hit_tokens_ = 0;
};

}  // namespace octavo
