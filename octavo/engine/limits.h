// What fits: the sizes that follow from a model and its engine's options, and which requests they rule out.
#pragma once

#include <cstdint>

#include "octavo/checkpoint/model_spec.h"
#include "octavo/engine/engine_options.h"
#include "octavo/engine/request.h"
#include "octavo/ops/ops.h"

namespace octavo {

// Prompt and output together, at most.
std::int64_t context_of(const EngineOptions& options, const ModelSpec& spec);

// What an engine is made with: options without sense by themselves or with the model throw Error, and
// max_batch_tokens is no larger than all sequences' contexts together, as no step is.
EngineOptions checked_options(EngineOptions options, const ModelSpec& spec);

// Immutable, so any thread may use it.
class Limits {
 public:
  // `options`: checked, and kv_bytes is settled (kv_memory.h). Throws Error where the KV cache has no room
  // for a block.
  Limits(const ModelSpec& spec, const EngineOptions& options, bool has_tokenizer);

  std::int64_t max_context() const { return max_context_; }
  const KvGeometry& kv_geometry() const { return geometry_; }
  // Positions that a sequence can reach: no sequence is longer than the KV cache, whatever the model would
  // allow.
  std::int64_t max_positions() const;

  // Throws Error for a request that makes no sense, or that could never fit; the message has the arithmetic.
  void check(const Request& request, bool scoring) const;
  // What check() says of the sampling alone, for whom many requests share it.
  void check_sampling(const SamplingParams& sampling) const;

 private:
  bool outside(std::int32_t id) const;

  std::int64_t vocab_size_ = 0;
  bool has_tokenizer_ = false;
  std::int64_t max_context_ = 0;
  KvGeometry geometry_;
};

}  // namespace octavo
