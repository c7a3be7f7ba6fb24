// `octavo bench --sequences`: what a rollout of so many sequences costs, measured as engines' offline
// benchmarks do.
#pragma once

#include <cstdint>
#include <vector>

#include "cli/flags.h"

namespace octavo {

struct RolloutBench {
  std::vector<std::int64_t> sequences;  // empty: not asked for
  std::int64_t prompt = 128;
  std::int64_t output = 512;
  std::int64_t max_batch_tokens = 0;  // see EngineFlags
};

// Tokens of a KV cache that holds so many sequences of so long a context, so that none waits for another's
// memory: where it does not fit, the engine says so.
std::int64_t kv_tokens_for(std::int64_t sequences, std::int64_t context);

void run_rollout_bench(const ModelFlags& model, const RolloutBench& bench, bool json);

}  // namespace octavo
