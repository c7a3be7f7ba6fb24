#include "octavo/rl/policy_batch.h"

#include "octavo/base/error.h"

namespace octavo {

ValidCounts& ValidCounts::operator+=(const ValidCounts& other) {
  tokens += other.tokens;
  sequences += other.sequences;
  positive_tokens += other.positive_tokens;
  return *this;
}

ValidCounts count_valid(const PolicyBatch& batch) {
  ValidCounts counts;
  for (std::int64_t b = 0; b < batch.batch; ++b) {
    if (batch.sample_mask[static_cast<std::size_t>(b)] == 0) continue;
    ++counts.sequences;
    const bool positive = !batch.rewards.empty() && batch.rewards[static_cast<std::size_t>(b)] > 0;
    for (std::int64_t t = 0; t < batch.sequence; ++t) {
      if (!batch.valid(b, t)) continue;
      ++counts.tokens;
      if (positive) ++counts.positive_tokens;
    }
  }
  return counts;
}

void check_sizes(const PolicyBatch& batch) {
  if (batch.batch < 0 || batch.sequence < 0)
    fail("policy batch: {} sequences of {} tokens", batch.batch, batch.sequence);
  const auto check = [](const char* name, std::size_t size, std::int64_t expected, bool may_be_empty) {
    if (size == static_cast<std::size_t>(expected) || (size == 0 && may_be_empty)) return;
    fail("policy batch: {} has {} entries, not {}", name, size, expected);
  };
  const std::int64_t tokens = batch.batch * batch.sequence;
  check("token_mask", batch.token_mask.size(), tokens, false);
  check("sample_mask", batch.sample_mask.size(), batch.batch, false);
  check("current", batch.current.size(), tokens, true);
  check("previous", batch.previous.size(), tokens, true);
  check("generation", batch.generation.size(), tokens, true);
  check("reference", batch.reference.size(), tokens, true);
  check("advantages", batch.advantages.size(), tokens, true);
  check("rewards", batch.rewards.size(), batch.batch, true);
}

void demand_array(bool present, const PolicyBatch& batch, const char* name, const char* reason) {
  if (!present && batch.batch * batch.sequence > 0)
    fail("policy batch: {} is missing, which {} needs", name, reason);
}

}  // namespace octavo
