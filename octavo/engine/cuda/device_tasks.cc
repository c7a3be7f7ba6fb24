#include "octavo/engine/cuda/device_tasks.h"

#include <algorithm>
#include <cstring>

namespace octavo::cuda {
namespace {

// What ban() of octavo/engine/sampler.cc forbids; where that hangs on a token that only the device knows, it
// decides.
void add_bans(const SampleContext& context, std::vector<TokenBan>& bans) {
  const bool pending = context.pending >= 0;
  for (const auto& word : context.bad_words) {
    const std::size_t head = word.size() - 1;
    if (head > context.tokens.size()) continue;
    const auto tail = context.tokens.last(head);
    const std::size_t known = pending && head > 0 ? head - 1 : head;
    if (!std::equal(tail.begin(), tail.begin() + static_cast<std::ptrdiff_t>(known), word.begin())) continue;
    TokenBan ban{.token = word.back()};
    if (known < head) {
      ban.after = word[known];
      ban.result = static_cast<std::int32_t>(context.pending);
    }
    bans.push_back(ban);
  }
}

}  // namespace

void DeviceTasks::clear() {
  plain_ = true;
  tasks_.clear();
  tokens_.clear();
  bans_.clear();
}

void DeviceTasks::add_filler(std::int64_t row) { tasks_.push_back({.row = row, .target = 0}); }

void DeviceTasks::add(const octavo::SampleTask& task) {
  if (task.target >= 0) {
    tasks_.push_back({.row = task.row, .target = task.target});
    return;
  }
  const SampleContext& context = task.context;
  const SamplingParams& params = context.params;
  const bool greedy = params.temperature == 0.0F;
  SampleTask out{.uniform = context.uniform,
                 .row = task.row,
                 .inverse_temperature = greedy ? 0.0F : 1.0F / params.temperature};
  if (!greedy) {  // which takes the largest logit whatever the filters leave
    if (params.top_k < vocab_size_) out.top_k = static_cast<std::int32_t>(params.top_k);
    out.top_p = params.top_p;
    out.min_p = params.min_p;
  }
  out.penalty = params.repetition_penalty;
  if (out.penalty != 1.0F) {
    tokens_.insert(tokens_.end(), context.tokens.begin(), context.tokens.end());
    if (context.pending >= 0) tokens_.back() = result_of_task(static_cast<std::size_t>(context.pending));
    out.num_tokens = static_cast<std::int32_t>(context.tokens.size());
  }
  const std::size_t bans_before = bans_.size();
  add_bans(context, bans_);
  out.num_bans = static_cast<std::int32_t>(bans_.size() - bans_before);
  const bool temperature_1 = greedy || params.temperature == 1.0F;
  out.raw_logprob = params.raw_logprobs && !(temperature_1 && out.plain());
  plain_ = plain_ && out.plain();
  tasks_.push_back(out);
}

void DeviceTasks::place_lists(std::byte* host, const std::byte* device) {
  const std::size_t token_bytes = tokens_.size() * sizeof(std::int32_t);
  if (!tokens_.empty()) std::memcpy(host, tokens_.data(), token_bytes);
  if (!bans_.empty()) std::memcpy(host + token_bytes, bans_.data(), bans_.size() * sizeof(TokenBan));
  const auto* tokens = reinterpret_cast<const std::int32_t*>(device);
  const auto* bans = reinterpret_cast<const TokenBan*>(device + token_bytes);
  for (SampleTask& task : tasks_) {
    task.tokens = tokens;
    task.bans = bans;
    tokens += task.num_tokens;
    bans += task.num_bans;
  }
}

}  // namespace octavo::cuda
