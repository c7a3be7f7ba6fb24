#include "octavo/engine/engine_core.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cassert>
#include <limits>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/engine/philox.h"

namespace octavo {
namespace {

constexpr std::int64_t kBlockSize = KvGeometry::block_size;

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
                       std::unique_ptr<Model> model, const EngineOptions& options, ThreadPool& pool,
                       const StepRunnerFactory& make_runner)
    : tokenizer_(std::move(tokenizer)),
      ops_(std::move(ops)),
      model_(std::move(model)),
      options_(with_kv_bytes(checked_options(options, model_->spec()), *model_)),
      limits_(model_->spec(), options_, tokenizer_ != nullptr),
      kv_(model_->storage(), model_->spec().num_layers, limits_.kv_geometry(), options_.poison_kv),
      blocks_(limits_.kv_geometry().num_blocks),
      cache_(blocks_, options_.weight_version),
      scheduler_({.max_sequences = options_.max_sequences,
                  .max_batch_tokens = options_.max_batch_tokens,
                  .prefix_cache = options_.prefix_cache},
                 blocks_, cache_) {
  model_->reserve(options_.max_batch_tokens, options_.max_sequences, limits_.max_positions());
  runner_ = make_runner(*ops_, *model_,
                        {.max_tokens = options_.max_batch_tokens,
                         .max_rows = options_.max_sequences,
                         .max_positions = limits_.max_positions()},
                        pool);
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
  auto next = launch();
  auto previous = std::exchange(in_flight_, std::move(next));
  if (previous) complete(std::move(*previous));
  // Nothing is left in flight that nobody waits for, or whose tokens the next step needs to be known.
  if (in_flight_ && (!in_flight_->feeds_next || idle())) drain();
}

void EngineCore::drain() {
  if (in_flight_) complete(*std::exchange(in_flight_, std::nullopt));
}

// Begins the next step, if there is one to schedule.
std::optional<EngineCore::Flight> EngineCore::launch() {
  Flight flight;
  flight.step = scheduler_.schedule();
  if (flight.step.empty()) return std::nullopt;
  for (const auto& chunk : flight.step) {
    Group& group = rollout_of(chunk).group;
    if (!group.started) --unstarted_;
    group.started = true;
  }
  try {
    prepare(flight);
    flight.feeds_next = runner_->launch({.batch = {.token_ids = buffers_.token_ids,
                                                   .positions = buffers_.positions,
                                                   .spans = buffers_.spans,
                                                   .logit_rows = buffers_.logit_rows},
                                         .kv = kv_.layers(),
                                         .tasks = buffers_.tasks});
  } catch (const std::exception& error) {
    drain();  // what was launched before has its results still to come
    fail_step(flight.step, error.what());
    return std::nullopt;
  }
  scheduler_.launched(flight.step);
  expect_tokens(flight);
  ++steps_;
  for (const auto& chunk : flight.step) computed_tokens_ += chunk.count;
  return flight;
}

// Gives every sequence that samples in this step a place for its token, and prompts that are complete now
// their siblings: the next step may be scheduled before the token is known.
void EngineCore::expect_tokens(const Flight& flight) {
  for (const Receiver& receiver : flight.receivers)
    if (Group& group = receiver.rollout->group; !group.scoring && !group.forked) fork(group);
  for (std::size_t i = 0; i < flight.receivers.size(); ++i) {
    Rollout& rollout = *flight.receivers[i].rollout;
    if (rollout.scoring) continue;
    rollout.tokens.push_back(0);
    rollout.pending = static_cast<std::ptrdiff_t>(i);
  }
}

void EngineCore::complete(Flight flight) {
  StepRunner::Results results;
  try {
    results = runner_->wait();
  } catch (const std::exception& error) {
    fail_step(flight.step, error.what());
    return;
  }
  // The step launched since, if any, sets `pending` anew where it goes on.
  for (std::size_t i = 0; i < flight.receivers.size(); ++i) {
    const auto& [rollout, position] = flight.receivers[i];
    if (!rollout->scoring && results[i]) rollout->tokens[position] = results[i]->token;
    if (rollout->tokens.size() == position + 1) rollout->pending = -1;
  }
  scheduler_.advance(flight.step);
  std::size_t first = 0;
  for (std::size_t i = 0; i < flight.step.size(); ++i) {
    const std::size_t count = flight.tasks_of_chunk[i];
    if (flight.step[i].sequence->scoring) {
      deliver_scores(flight.step[i], results.subspan(first, count));
    } else {
      for (std::size_t task = first; task < first + count; ++task)
        deliver(flight.receivers[task], results[task]);
    }
    first += count;
  }
  bury_finished();
}

void EngineCore::fail_step(const Scheduler::Step& step, std::string_view what) {
  spdlog::error("a step of {} sequences failed: {}", step.size(), what);
  for (const auto& chunk : step)
    finish_group(rollout_of(chunk).group, FinishReason::kError, fmt::format("the step failed: {}", what));
  bury_finished();
}

void EngineCore::prepare(Flight& flight) {
  buffers_.token_ids.clear();
  buffers_.positions.clear();
  buffers_.spans.clear();
  buffers_.logit_rows.clear();
  buffers_.tasks.clear();
  for (const auto& chunk : flight.step) {
    const Rollout& rollout = rollout_of(chunk);
    if (options_.poison_kv) poison_fresh_blocks(chunk);
    const std::size_t tasks_before = buffers_.tasks.size();
    add_tasks(chunk, flight);
    flight.tasks_of_chunk.push_back(buffers_.tasks.size() - tasks_before);
    const auto first_token = static_cast<std::int64_t>(buffers_.token_ids.size());
    buffers_.spans.push_back({.first_token = first_token,
                              .num_tokens = chunk.count,
                              .first_position = chunk.first,
                              .blocks = rollout.blocks.data()});
    for (std::int64_t position = chunk.first; position < chunk.end(); ++position) {
      if (position >= chunk.logits_from)
        buffers_.logit_rows.push_back(static_cast<std::int32_t>(buffers_.token_ids.size()));
      const bool pending = rollout.pending >= 0 && position == rollout.length() - 1;
      buffers_.token_ids.push_back(pending ? result_of_task(static_cast<std::size_t>(rollout.pending))
                                           : rollout.tokens[static_cast<std::size_t>(position)]);
      buffers_.positions.push_back(static_cast<std::int32_t>(position));
    }
  }
}

// A block whose first position this step writes has nothing of this sequence in it yet.
void EngineCore::poison_fresh_blocks(const Scheduler::Chunk& chunk) {
  for (std::int64_t block = KvGeometry::blocks_for(chunk.first); block * kBlockSize < chunk.end(); ++block)
    kv_.poison(*ops_, chunk.sequence->blocks[static_cast<std::size_t>(block)]);
}

// The first token of all samples of a request comes from the one row that their shared prompt ends in.
void EngineCore::add_tasks(const Scheduler::Chunk& chunk, Flight& flight) {
  Rollout& rollout = rollout_of(chunk);
  const auto row = static_cast<std::int64_t>(buffers_.logit_rows.size());
  if (rollout.scoring) {
    for (std::int64_t i = 0; i < chunk.count; ++i) {
      const auto position = static_cast<std::size_t>(chunk.first + i + 1);
      buffers_.tasks.push_back({.row = row + i,
                                .target = rollout.tokens[position],
                                .context = {.params = rollout.group.request.sampling}});
      flight.receivers.push_back({.rollout = &rollout, .position = position});
    }
  } else if (chunk.logit_rows() > 0 && rollout.group.forked) {
    add_task(rollout, row, flight);
  } else if (chunk.logit_rows() > 0) {
    for (const auto& sample : rollout.group.rollouts) add_task(*sample, row, flight);
  }
}

void EngineCore::add_task(Rollout& rollout, std::int64_t row, Flight& flight) {
  buffers_.tasks.push_back(
      {.row = row,
       .target = -1,
       .context = {.params = rollout.group.request.sampling,
                   .uniform = sampling_uniform(rollout.group.seed, rollout.tokens.size(),
                                               static_cast<std::uint32_t>(rollout.index)),
                   .tokens = rollout.tokens,
                   .pending = rollout.pending,
                   .bad_words = rollout.group.bad_words}});
  flight.receivers.push_back({.rollout = &rollout, .position = rollout.tokens.size()});
}

// A sample that has ended meanwhile has no use for the token.
void EngineCore::deliver(const Receiver& receiver, const std::optional<Sample>& result) {
  if (receiver.rollout->finished) return;
  if (result) return accept_token(receiver, *result);
  finish(
      *receiver.rollout, FinishReason::kError,
      fmt::format("the logits for position {} are not finite or leave no token to choose; check the weights",
                  receiver.position));
}

void EngineCore::deliver_scores(const Scheduler::Chunk& chunk,
                                std::span<const std::optional<Sample>> results) {
  Rollout& rollout = rollout_of(chunk);
  if (rollout.finished) return;
  std::size_t position = static_cast<std::size_t>(chunk.first) + 1;
  for (const auto& result : results) {
    if (!result)
      return finish(rollout, FinishReason::kError,
                    fmt::format("the logits for position {} are not finite; check the weights", position));
    rollout.output.logprobs[position] = result->logprob;
    rollout.output.weight_versions[position] = cache_.weight_version();
    ++position;
  }
  if (chunk.end() == rollout.needed()) finish(rollout, FinishReason::kStop, "scored");
}

void EngineCore::fork(Group& group) {
  group.forked = true;
  for (std::size_t i = 1; i < group.rollouts.size(); ++i)
    if (const auto copy = scheduler_.fork(*group.rollouts.front(), *group.rollouts[i]))
      kv_.copy(*ops_, copy->first, copy->second);
}

void EngineCore::accept_token(const Receiver& receiver, const Sample& sample) {
  Rollout& rollout = *receiver.rollout;
  const SamplingParams& sampling = rollout.group.request.sampling;
  const auto contains = [&](const auto& ids) {
    return std::find(ids.begin(), ids.end(), sample.token) != ids.end();
  };
  rollout.output.token_ids.push_back(sample.token);
  rollout.output.logprobs.push_back(sample.logprob);
  rollout.output.weight_versions.push_back(cache_.weight_version());
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

// Requests that have ended go, but not while a step in flight still computes for them.
void EngineCore::bury_finished() {
  for (const std::string& id : finished_ids_) {
    const auto found = groups_.find(id);
    if (found == groups_.end()) continue;
    if (in_flight_) in_flight_->dead.push_back(std::move(found->second));
    groups_.erase(found);
  }
  finished_ids_.clear();
}

bool EngineCore::abort(const std::string& id, std::string_view reason) {
  drain();
  const auto found = groups_.find(id);
  if (found == groups_.end()) return false;
  finish_group(*found->second, FinishReason::kAbort, reason);
  bury_finished();
  return true;
}

void EngineCore::finish_all(FinishReason reason, std::string_view message) {
  drain();
  for (const auto& [id, group] : groups_) finish_group(*group, reason, message);
  bury_finished();
}

void EngineCore::change_weights(std::uint64_t version, bool keep_kv) {
  drain();
  scheduler_.change_weights(version, keep_kv);
}

void EngineCore::sleep(MemoryTags tags, SleepingWeights weights) {
  drain();
  if (tags.weights && !asleep_.weights) {
    model_->weights().memory().sleep(weights == SleepingWeights::kCopied);
    asleep_.weights = true;
  }
  if (tags.kv_cache && !asleep_.kv_cache) {
    scheduler_.change_weights(cache_.weight_version(), /*keep_kv=*/false);
    kv_.sleep();
    asleep_.kv_cache = true;
  }
}

bool EngineCore::wake(MemoryTags tags) {
  bool lost = false;
  if (tags.weights && asleep_.weights) {
    lost = !model_->weights().memory().wake();
    asleep_.weights = false;
  }
  if (tags.kv_cache && asleep_.kv_cache) {
    kv_.wake();
    asleep_.kv_cache = false;
  }
  return lost;
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
