// From a row of logits to a token and its log-probability.
//
// Order: repetition penalty (HF's formula, over prompt and output), bad words, temperature, top-k, top-p,
// min-p, each over what the one before left, renormalized; then one inverse-CDF draw in vocabulary order with
// one Philox uniform.
// - top-k keeps every logit >= the k-th largest, so ties at the border stay.
// - top-p keeps the shortest head of (logit falling, id rising) whose mass reaches top_p.
// - min-p keeps tokens of probability >= min_p times the most likely one's.
// - Temperature 0 takes the lowest id among the largest logits; its log-probability is that of temperature 1
// after
//   penalties and bad words.
// Probability mass is counted in whole units of 2^-44 of the most likely token (octavo/ops/sampling_units.h):
// sums of integers do not depend on their order, so any device finds the same tokens its own way. What a draw
// cannot reach is less likely than 2^-44.
// The log-probability is that of the token under the distribution it was drawn from; `raw_logprobs` gives the
// plain log-softmax of the untouched logits. Sums run in an order fixed by the vocabulary size
// (sampler_kernels.h), so a result depends on the row alone and has the same bits on every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "octavo/base/cpu_features.h"
#include "octavo/engine/request.h"
#include "octavo/engine/sampler_kernels.h"

namespace octavo {

struct Sample {
  std::int32_t token = 0;
  float logprob = 0;
};

// What the sampler has to know of a sequence besides its logits.
struct SampleContext {
  const SamplingParams& params;
  double uniform = 0;                         // sampling_uniform(seed, position, index)
  std::span<const std::int32_t> tokens = {};  // prompt and output so far
  // >= 0: the last of `tokens` is not known yet, but the result of this task of the step launched before.
  // Only runners that compute ahead are given such a context, and resolve it.
  std::ptrdiff_t pending = -1;
  std::span<const std::vector<std::int32_t>> bad_words = {};  // as token sequences
};

// Memory that a thread reuses between calls.
struct SamplerScratch {
  struct Candidate {
    float logit;
    std::int32_t id;
    float weight;
  };
  std::vector<float> logits;  // only for rows that penalties or bad words change
  std::vector<float> maxima;
  std::vector<float> sums;
  std::vector<float> values;
  std::vector<Candidate> candidates;  // what the filters have left, in vocabulary order
  std::vector<Candidate> partitioned;
};

class Sampler {
 public:
  Sampler(std::int64_t vocab_size, Isa isa);

  // Rows are independent: any number of threads may call this at once, each with its own scratch. Nothing
  // when the logits hold NaN or +inf, or when nothing finite is left to choose.
  std::optional<Sample> sample(const float* logits, const SampleContext& context,
                               SamplerScratch& scratch) const;

  // log-softmax(logits)[token], with the bits that sample() gives at temperature 1 with no filters. NaN as
  // above.
  float logprob(const float* logits, std::int32_t token, SamplerScratch& scratch) const;

 private:
  // Softmax of one row: weight i is exp((x[i] - max) * inverse_temperature), `total` the units of all, added
  // up by chunks; 0 where the row is not finite.
  struct Softmax {
    const float* x = nullptr;
    float max = 0;
    float inverse_temperature = 1;
    std::uint64_t total = 0;
  };
  Softmax softmax(const float* x, float inverse_temperature, SamplerScratch& scratch) const;
  Sample draw(const Softmax& row, double uniform, const SamplerScratch& scratch) const;
  Sample draw_filtered(const Softmax& row, const SampleContext& context, SamplerScratch& scratch) const;
  void keep_at_least(const Softmax& row, float bound, SamplerScratch& scratch) const;
  void keep_top(const Softmax& row, std::int64_t k, SamplerScratch& scratch) const;
  void keep_mass(std::uint64_t mass, SamplerScratch& scratch) const;
  std::uint64_t weigh_candidates(const Softmax& row, SamplerScratch& scratch) const;
  std::int32_t argmax(const Softmax& row, const SamplerScratch& scratch) const;

  std::int64_t vocab_size_;
  const SamplerKernels& kernels_;
};

}  // namespace octavo
