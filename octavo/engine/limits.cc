#include "octavo/engine/limits.h"

#include <algorithm>

#include "octavo/base/error.h"
#include "octavo/engine/kv_memory.h"

namespace octavo {
namespace {

constexpr std::int64_t kBlockSize = KvGeometry::block_size;
// Samples share a prompt, but each holds its own tokens: this bounds what one request can make the engine
// hold.
constexpr std::int64_t kMaxSamples = 1024;
// Far above what any machine of today computes at once: more is a mistake, and would be memory reserved for
// nothing.
constexpr std::int64_t kMaxSequences = 65536;
constexpr std::int64_t kMaxBatchTokens = std::int64_t{1} << 20;

}  // namespace

std::int64_t context_of(const EngineOptions& options, const ModelSpec& spec) {
  return options.max_context > 0 ? options.max_context : spec.max_position_embeddings;
}

EngineOptions checked_options(EngineOptions options, const ModelSpec& spec) {
  if (options.max_sequences < 1 || options.max_sequences > kMaxSequences)
    fail("max_sequences is {}; it must be from 1 to {}", options.max_sequences, kMaxSequences);
  if (options.max_batch_tokens > kMaxBatchTokens)
    fail("max_batch_tokens is {}; it must be at most {}", options.max_batch_tokens, kMaxBatchTokens);
  if (options.max_batch_tokens < options.max_sequences)
    fail(
        "max_batch_tokens is {}; it must be at least max_sequences, {}, so that each can have a token in a "
        "step",
        options.max_batch_tokens, options.max_sequences);
  if (options.max_waiting < 1) fail("max_waiting is {}; it must be at least 1", options.max_waiting);
  if (options.kv_tokens < 0) fail("kv_tokens is {}; it must be >= 0", options.kv_tokens);
  if (options.max_context < 0) fail("max_context is {}; it must be >= 0", options.max_context);
  if (options.max_context > spec.max_position_embeddings)
    fail("max_context is {} (prompt and output together), but the model's max_position_embeddings is {}",
         options.max_context, spec.max_position_embeddings);
  const std::int64_t context = context_of(options, spec);
  if (options.max_batch_tokens / context >= options.max_sequences)
    options.max_batch_tokens = options.max_sequences * context;
  return options;
}

Limits::Limits(const ModelSpec& spec, const EngineOptions& options, bool has_tokenizer)
    : vocab_size_(spec.vocab_size), has_tokenizer_(has_tokenizer), max_context_(context_of(options, spec)) {
  geometry_ = {.num_blocks = 0, .num_kv_heads = spec.num_kv_heads, .head_dim = spec.head_dim};
  const std::size_t block_bytes = KvMemory::block_bytes(spec.num_layers, geometry_);
  geometry_.num_blocks = options.kv_tokens > 0 ? KvGeometry::blocks_for(options.kv_tokens)
                                               : static_cast<std::int64_t>(options.kv_bytes / block_bytes);
  if (geometry_.num_blocks < 1)
    fail("the KV cache has {} bytes, but one block of {} tokens takes {}; give more", options.kv_bytes,
         kBlockSize, block_bytes);
  geometry_.num_blocks =
      std::min(geometry_.num_blocks, options.max_sequences * KvGeometry::blocks_for(max_context_));
}

std::int64_t Limits::max_positions() const {
  return std::min(max_context_, geometry_.num_blocks * kBlockSize);
}

bool Limits::outside(std::int32_t id) const { return id < 0 || id >= vocab_size_; }

void Limits::check_sampling(const SamplingParams& sampling) const {
  sampling.validate();
  if (sampling.n > kMaxSamples)
    fail("n is {}; at most {} samples a request are possible", sampling.n, kMaxSamples);
  if (!has_tokenizer_ && !(sampling.stop.empty() && sampling.bad_words.empty()))
    fail("stop strings and bad_words need a tokenizer, and this engine has none; use stop_token_ids");
  for (const std::int32_t id : sampling.stop_token_ids)
    if (outside(id))
      fail("stop token {} is outside the vocabulary of {} (ids 0 to {})", id, vocab_size_, vocab_size_ - 1);
}

void Limits::check(const Request& request, bool scoring) const {
  const SamplingParams& sampling = request.sampling;
  check_sampling(sampling);
  const std::string_view what = scoring ? "sequence" : "prompt";
  const auto prompt = static_cast<std::int64_t>(request.prompt_ids.size());
  if (prompt == 0) fail("the {} is empty; give at least one token", what);
  for (std::size_t i = 0; i < request.prompt_ids.size(); ++i)
    if (outside(request.prompt_ids[i]))
      fail("token {} of the {} is {}, which is outside the vocabulary of {} (ids 0 to {})", i, what,
           request.prompt_ids[i], vocab_size_, vocab_size_ - 1);

  const std::int64_t output = scoring ? 0 : sampling.max_tokens;
  if (prompt >= max_context_ + (scoring ? 1 : 0))
    fail("the {} of {} tokens {} the context of {}; shorten it", what, prompt,
         prompt > max_context_ ? "is longer than" : "leaves no room for output in", max_context_);
  if (output > max_context_ - prompt)
    fail(
        "prompt of {} + max_tokens of {} = {} tokens is more than the context of {}; lower max_tokens to {} "
        "or less",
        prompt, output, static_cast<std::uint64_t>(prompt) + static_cast<std::uint64_t>(output), max_context_,
        max_context_ - prompt);
  // The last token's keys and values are never needed.
  const std::int64_t stored = std::max<std::int64_t>(prompt + output - 1, 1);
  if (KvGeometry::blocks_for(stored) > geometry_.num_blocks)
    fail(
        "{} of {} + max_tokens of {} need KV room for {} tokens = {} blocks of {}, but there are {} blocks; "
        "give more KV memory or lower max_tokens",
        what, prompt, output, stored, KvGeometry::blocks_for(stored), kBlockSize, geometry_.num_blocks);
}

}  // namespace octavo
