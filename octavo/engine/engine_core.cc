#include "octavo/engine/engine_core.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cmath>
#include <limits>

#include "octavo/base/error.h"
#include "octavo/engine/philox.h"

namespace octavo {
namespace {

constexpr std::int64_t kBlockSize = KvGeometry::block_size;
std::int64_t blocks_for(std::int64_t tokens) { return (tokens + kBlockSize - 1) / kBlockSize; }

// A model's vocabulary may be padded beyond its tokenizer's; such an id has no text.
std::string text_of(StreamingDetokenizer& detokenizer, std::int32_t token) {
  try {
    return detokenizer.push(token);
  } catch (const Error&) {
    return {};
  }
}

Rollout& rollout_of(const Scheduler::Chunk& chunk) { return static_cast<Rollout&>(*chunk.sequence); }

}  // namespace

EngineCore::EngineCore(std::shared_ptr<const Tokenizer> tokenizer, std::unique_ptr<Ops> ops,
                       std::unique_ptr<Model> model, const EngineOptions& options, ThreadPool& pool)
    : tokenizer_(std::move(tokenizer)),
      ops_(std::move(ops)),
      model_(std::move(model)),
      pool_(pool),
      options_(options),
      limits_(model_->spec(), options, tokenizer_ != nullptr),
      kv_(model_->spec().num_layers, limits_.kv_geometry(), options_.poison_kv),
      blocks_(limits_.kv_geometry().num_blocks),
      cache_(blocks_, options_.weight_version),
      scheduler_({.max_sequences = options_.max_sequences,
                  .max_batch_tokens = options_.max_batch_tokens,
                  .prefix_cache = options_.prefix_cache},
                 blocks_, cache_),
      sampler_(model_->spec().vocab_size, best_isa()),
      scratch_(static_cast<std::size_t>(pool.size())) {
  model_->reserve(options_.max_batch_tokens, options_.max_sequences, limits_.max_positions());
}

void EngineCore::accept(std::unique_ptr<Group> group) {
  Rollout& leader = *group->rollouts.front();
  if (group->scoring) {
    leader.output.token_ids = leader.tokens;
    leader.output.logprobs.assign(leader.tokens.size(), std::numeric_limits<float>::quiet_NaN());
    leader.output.weight_versions.assign(leader.tokens.size(), cache_.weight_version());
  }
  ++unstarted_;
  const std::string id = group->request.id;
  groups_.emplace(id, std::move(group));
  if (leader.needed() > 0) {
    scheduler_.add(leader);
  } else {  // the score of a single token
    finish(leader, FinishReason::kStop, "scored");
    --unstarted_;
    bury_finished();
  }
}

void EngineCore::step() {
  const Scheduler::Step step = scheduler_.schedule();
  if (step.empty()) return;
  for (const auto& chunk : step) {
    Group& group = rollout_of(chunk).group;
    if (!group.started) --unstarted_;
    group.started = true;
  }
  try {
    prepare(step);
    const Batch batch{.token_ids = buffers_.token_ids,
                      .positions = buffers_.positions,
                      .spans = buffers_.spans,
                      .logit_rows = buffers_.logit_rows};
    run_tasks(model_->forward(*ops_, batch, kv_.layers()));
  } catch (const std::exception& error) {
    spdlog::error("a step of {} sequences failed: {}", step.size(), error.what());
    for (const auto& chunk : step)
      finish_group(rollout_of(chunk).group, FinishReason::kError,
                   fmt::format("the step failed: {}", error.what()));
    bury_finished();
    return;
  }
  scheduler_.advance(step);
  ++steps_;

  std::size_t first_task = 0;
  for (std::size_t i = 0; i < step.size(); ++i) {
    const auto tasks = std::span(buffers_.tasks).subspan(first_task, buffers_.tasks_of_chunk[i]);
    first_task += tasks.size();
    computed_tokens_ += step[i].count;
    Group& group = rollout_of(step[i]).group;
    if (group.scoring) {
      deliver_scores(step[i], tasks);
    } else if (!tasks.empty()) {
      deliver(group, tasks);
    }
  }
  bury_finished();
}

void EngineCore::prepare(const Scheduler::Step& step) {
  buffers_.token_ids.clear();
  buffers_.positions.clear();
  buffers_.spans.clear();
  buffers_.logit_rows.clear();
  buffers_.tasks.clear();
  buffers_.tasks_of_chunk.clear();
  for (const auto& chunk : step) {
    const Sequence& sequence = *chunk.sequence;
    if (options_.poison_kv) poison_fresh_blocks(chunk);
    const std::size_t tasks_before = buffers_.tasks.size();
    add_tasks(chunk);
    buffers_.tasks_of_chunk.push_back(buffers_.tasks.size() - tasks_before);
    const auto first_token = static_cast<std::int64_t>(buffers_.token_ids.size());
    buffers_.spans.push_back({.first_token = first_token,
                              .num_tokens = chunk.count,
                              .first_position = chunk.first,
                              .blocks = sequence.blocks.data()});
    for (std::int64_t position = chunk.first; position < chunk.end(); ++position) {
      if (position >= chunk.logits_from)
        buffers_.logit_rows.push_back(static_cast<std::int32_t>(buffers_.token_ids.size()));
      buffers_.token_ids.push_back(sequence.tokens[static_cast<std::size_t>(position)]);
      buffers_.positions.push_back(static_cast<std::int32_t>(position));
    }
  }
}

// A block whose first position this step writes has nothing of this sequence in it yet.
void EngineCore::poison_fresh_blocks(const Scheduler::Chunk& chunk) {
  for (std::int64_t block = blocks_for(chunk.first); block * kBlockSize < chunk.end(); ++block)
    kv_.poison(*ops_, chunk.sequence->blocks[static_cast<std::size_t>(block)]);
}

// The first token of all samples of a request comes from the one row that their shared prompt ends in.
void EngineCore::add_tasks(const Scheduler::Chunk& chunk) {
  Rollout& rollout = rollout_of(chunk);
  const auto row = static_cast<std::int64_t>(buffers_.logit_rows.size());
  if (rollout.scoring) {
    for (std::int64_t i = 0; i < chunk.count; ++i)
      buffers_.tasks.push_back({.rollout = &rollout,
                                .row = row + i,
                                .target = rollout.tokens[static_cast<std::size_t>(chunk.first + i + 1)],
                                .result = {}});
  } else if (chunk.logit_rows() > 0 && rollout.group.forked) {
    buffers_.tasks.push_back({.rollout = &rollout, .row = row, .target = -1, .result = {}});
  } else if (chunk.logit_rows() > 0) {
    for (const auto& sample : rollout.group.rollouts)
      buffers_.tasks.push_back({.rollout = sample.get(), .row = row, .target = -1, .result = {}});
  }
}

// Threads take tasks one by one. A task's result depends on its row alone.
void EngineCore::run_tasks(const float* logits) {
  std::atomic<std::size_t> next{0};
  pool_.parallel_for(static_cast<std::int64_t>(std::min(scratch_.size(), buffers_.tasks.size())), 1,
                     [&](std::int64_t slot, std::int64_t) {
                       for (std::size_t i = next++; i < buffers_.tasks.size(); i = next++)
                         run_task(logits, buffers_.tasks[i], scratch_[static_cast<std::size_t>(slot)]);
                     });
}

void EngineCore::run_task(const float* logits, Task& task, SamplerScratch& scratch) const {
  const float* row = logits + task.row * model_->logits_stride();
  const Rollout& rollout = *task.rollout;
  if (task.target >= 0) {
    const float logprob = sampler_.logprob(row, task.target, scratch);
    if (!std::isnan(logprob)) task.result = Sample{.token = task.target, .logprob = logprob};
    return;
  }
  const SampleContext context{.params = rollout.group.request.sampling,
                              .uniform = sampling_uniform(rollout.group.seed, rollout.tokens.size(),
                                                          static_cast<std::uint32_t>(rollout.index)),
                              .tokens = rollout.tokens,
                              .seen = rollout.seen,
                              .bad_words = rollout.group.bad_words};
  task.result = sampler_.sample(row, context, scratch);
}

void EngineCore::deliver(Group& group, std::span<const Task> tasks) {
  for (const Task& task : tasks) {
    if (task.result) continue;
    const std::string message = fmt::format(
        "the logits for position {} are not finite or leave no token to choose; check the weights",
        task.rollout->tokens.size());
    if (group.forked) return finish(*task.rollout, FinishReason::kError, message);
    return finish_group(group, FinishReason::kError, message);
  }
  if (!group.forked) fork(group);
  for (const Task& task : tasks)
    if (!task.rollout->finished) accept_token(*task.rollout, *task.result);
}

void EngineCore::deliver_scores(const Scheduler::Chunk& chunk, std::span<const Task> tasks) {
  Rollout& rollout = rollout_of(chunk);
  std::size_t position = static_cast<std::size_t>(chunk.first) + 1;
  for (const Task& task : tasks) {
    if (!task.result)
      return finish(rollout, FinishReason::kError,
                    fmt::format("the logits for position {} are not finite; check the weights", position));
    rollout.output.logprobs[position] = task.result->logprob;
    rollout.output.weight_versions[position] = cache_.weight_version();
    ++position;
  }
  if (rollout.computed == rollout.needed()) finish(rollout, FinishReason::kStop, "scored");
}

void EngineCore::fork(Group& group) {
  group.forked = true;
  for (std::size_t i = 1; i < group.rollouts.size(); ++i)
    if (const auto copy = scheduler_.fork(*group.rollouts.front(), *group.rollouts[i]))
      kv_.copy(*ops_, copy->first, copy->second);
}

void EngineCore::accept_token(Rollout& rollout, const Sample& sample) {
  const SamplingParams& sampling = rollout.group.request.sampling;
  const auto contains = [&](const auto& ids) {
    return std::find(ids.begin(), ids.end(), sample.token) != ids.end();
  };
  rollout.tokens.push_back(sample.token);
  rollout.output.token_ids.push_back(sample.token);
  rollout.output.logprobs.push_back(sample.logprob);
  rollout.output.weight_versions.push_back(cache_.weight_version());
  if (!rollout.seen.empty())
    rollout.seen[static_cast<std::size_t>(sample.token) / 64] |= std::uint64_t{1} << (sample.token % 64);
  ++sampled_tokens_;

  if (!sampling.ignore_eos && contains(model_->spec().eos_token_ids)) {
    close(rollout, FinishReason::kStop, fmt::format("end-of-sequence token {}", sample.token));
  } else if (contains(sampling.stop_token_ids)) {
    close(rollout, FinishReason::kStop, fmt::format("stop token {}", sample.token));
  } else if (rollout.detokenizer && rollout.text.append(text_of(*rollout.detokenizer, sample.token))) {
    close(rollout, FinishReason::kStop, fmt::format("stop string \"{}\"", rollout.text.stop()));
  } else if (static_cast<std::int64_t>(rollout.output.token_ids.size()) == sampling.max_tokens) {
    close(rollout, FinishReason::kLength, fmt::format("max_tokens of {}", sampling.max_tokens));
  }
  send(rollout, {.request_id = {},
                 .index = 0,
                 .token_id = sample.token,
                 .logprob = sample.logprob,
                 .weight_version = cache_.weight_version(),
                 .text = {},
                 .finished = nullptr});
}

// Ends a sample: nothing of it is scheduled again. Its sink has yet to hear.
void EngineCore::close(Rollout& rollout, FinishReason reason, std::string message) {
  assert(!rollout.finished);
  scheduler_.remove(rollout);
  rollout.finished = true;
  --rollout.group.unfinished;
  if (rollout.detokenizer && rollout.text.stop().empty()) rollout.text.append(rollout.detokenizer->finish());
  rollout.output.text = rollout.text.text();
  rollout.output.finish_reason = reason;
  rollout.output.finish_message = std::move(message);
  if (rollout.group.unfinished > 0) return;
  finished_ids_.push_back(rollout.group.request.id);
  if (on_finished) on_finished(rollout.group.request.id);
}

void EngineCore::finish(Rollout& rollout, FinishReason reason, std::string_view message) {
  if (rollout.finished) return;
  close(rollout, reason, std::string(message));
  send(rollout, {});
}

void EngineCore::finish_group(Group& group, FinishReason reason, std::string_view message) {
  if (!group.started) --unstarted_;
  group.started = true;
  for (const auto& rollout : group.rollouts) finish(*rollout, reason, message);
}

// Completes the event and hands it to the request's sink. A sink that throws is not called again.
void EngineCore::send(Rollout& rollout, Event event) {
  Group& group = rollout.group;
  if (!group.sink) return;
  const std::string text = rollout.text.take(/*all=*/rollout.finished);
  event.request_id = group.request.id;
  event.index = rollout.index;
  event.text = text;
  event.finished = rollout.finished ? &rollout.output : nullptr;
  try {
    group.sink(event);
    return;
  } catch (const std::exception& error) {
    spdlog::warn("request '{}' is cancelled: its receiver failed: {}", group.request.id, error.what());
  } catch (...) {
    spdlog::warn("request '{}' is cancelled: its receiver failed", group.request.id);
  }
  group.sink = nullptr;
  finish_group(group, FinishReason::kAbort, "its receiver failed");
}

void EngineCore::bury_finished() {
  for (const std::string& id : finished_ids_) groups_.erase(id);
  finished_ids_.clear();
}

bool EngineCore::abort(const std::string& id, std::string_view reason) {
  const auto found = groups_.find(id);
  if (found == groups_.end()) return false;
  finish_group(*found->second, FinishReason::kAbort, reason);
  bury_finished();
  return true;
}

void EngineCore::finish_all(FinishReason reason, std::string_view message) {
  for (const auto& [id, group] : groups_) finish_group(*group, reason, message);
  bury_finished();
}

void EngineCore::change_weights(std::uint64_t version, bool keep_kv) {
  scheduler_.change_weights(version, keep_kv);
}

EngineStats EngineCore::stats() const {
  return {.running_sequences = scheduler_.running(),
          .waiting_sequences = scheduler_.waiting(),
          .waiting_requests = unstarted_,
          .kv_blocks = blocks_.total(),
          .kv_blocks_available = blocks_.available(),
          .steps = steps_,
          .computed_tokens = computed_tokens_,
          .sampled_tokens = sampled_tokens_,
          .prefix_hit_tokens = scheduler_.prefix_hit_tokens(),
          .preemptions = scheduler_.preemptions(),
          .weight_version = cache_.weight_version()};
}

}  // namespace octavo
