#include "octavo/rl/sequence_mismatch.h"

#include <algorithm>
#include <cmath>

#include "octavo/base/error.h"

namespace octavo {
namespace {

// Of the sequences that have valid tokens; 0 for none. A NaN is reported, not skipped.
Extremes extremes(const SequenceMismatch& result, std::span<const std::int64_t> tokens,
                  std::span<const std::uint8_t> sample_mask) {
  Extremes e;
  std::int64_t count = 0;
  for (std::size_t b = 0; b < tokens.size(); ++b) {
    if (sample_mask[b] == 0 || tokens[b] == 0) continue;
    const double error = result.mult_prob_error[b];
    e.min = count == 0 || !(error >= e.min) ? error : e.min;
    e.max = count == 0 || !(error <= e.max) ? error : e.max;
    e.mean += error;
    ++count;
  }
  if (count > 0) e.mean /= static_cast<double>(count);
  return e;
}

}  // namespace

SequenceMismatch sequence_mismatch(const PolicyBatch& batch, std::optional<double> threshold) {
  check_sizes(batch);
  demand_array(!batch.previous.empty(), batch, "previous", "the mismatch of sequences");
  demand_array(!batch.generation.empty(), batch, "generation", "the mismatch of sequences");
  if (threshold) demand_array(!batch.rewards.empty(), batch, "rewards", "seq_logprob_error_threshold");

  const auto rows = static_cast<std::size_t>(batch.batch);
  SequenceMismatch result;
  result.mult_prob_error.assign(rows, 0.0);
  result.sample_mask.assign(batch.sample_mask.begin(), batch.sample_mask.end());
  std::vector<std::int64_t> tokens(rows);
  std::int64_t masked_correct = 0;
  for (std::int64_t b = 0; b < batch.batch; ++b) {
    const auto row = static_cast<std::size_t>(b);
    double sum = 0;
    for (std::int64_t t = 0; t < batch.sequence; ++t) {
      if (!batch.valid(b, t)) continue;
      const auto i = static_cast<std::size_t>(b * batch.sequence + t);
      sum += std::exp(std::abs(static_cast<double>(batch.generation[i]) - batch.previous[i]));
      ++tokens[row];
    }
    if (tokens[row] == 0) continue;
    result.mult_prob_error[row] = sum / static_cast<double>(tokens[row]);
    if (!threshold || result.mult_prob_error[row] <= *threshold) continue;
    result.sample_mask[row] = 0;
    ++result.num_masked_seqs;
    if (batch.rewards[row] == 1.0F) ++masked_correct;
  }
  result.before = extremes(result, tokens, batch.sample_mask);
  result.after = extremes(result, tokens, result.sample_mask);
  if (result.num_masked_seqs > 0)
    result.masked_correct_pct =
        static_cast<double>(masked_correct) / static_cast<double>(result.num_masked_seqs);
  return result;
}

}  // namespace octavo
