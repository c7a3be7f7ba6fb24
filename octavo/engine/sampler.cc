#include "octavo/engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <functional>
#include <limits>

#include "octavo/ops/sampling_units.h"

namespace octavo {

namespace portable {
extern const SamplerKernels kSamplerKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const SamplerKernels kSamplerKernels;
}
namespace avx512 {
extern const SamplerKernels kSamplerKernels;
}

const SamplerKernels& sampler_kernels(Isa isa) {
  if (isa >= Isa::kAvx512) return avx512::kSamplerKernels;
  return isa == Isa::kAvx2 ? avx2::kSamplerKernels : portable::kSamplerKernels;
}
#else
const SamplerKernels& sampler_kernels(Isa) { return portable::kSamplerKernels; }
#endif

namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

float log_probability(float x, float max, float inverse_temperature, std::uint64_t total) {
  return static_cast<float>(static_cast<double>((x - max) * inverse_temperature) -
                            std::log(static_cast<double>(total) / kUnitsOfOne));
}

// HF's RepetitionPenaltyLogitsProcessor: positive logits are divided, negative ones multiplied, once for each
// token however often it came.
void penalize(const float* logits, std::span<const std::int32_t> tokens, float penalty, float* penalized) {
  for (const std::int32_t token : tokens) {
    const float logit = logits[token];
    penalized[token] = logit < 0 ? logit * penalty : logit / penalty;
  }
}

// Takes the last token of a bad word away wherever the tokens before it have just been produced.
void ban(std::span<const std::vector<std::int32_t>> bad_words, std::span<const std::int32_t> tokens,
         float* logits) {
  for (const auto& word : bad_words) {
    const std::size_t head = word.size() - 1;
    if (head <= tokens.size() &&
        std::equal(word.begin(), word.end() - 1, tokens.end() - static_cast<long>(head)))
      logits[word.back()] = kLowest;
  }
}

}  // namespace

Sampler::Sampler(std::int64_t vocab_size, Isa isa)
    : vocab_size_(vocab_size), kernels_(sampler_kernels(isa)) {}

Sampler::Softmax Sampler::softmax(const float* x, float inverse_temperature, SamplerScratch& scratch) const {
  scratch.maxima.resize(static_cast<std::size_t>(vocab_chunks(vocab_size_)));
  scratch.sums.resize(scratch.maxima.size());
  kernels_.chunk_maxima(x, vocab_size_, scratch.maxima.data());
  Softmax row{.x = x, .max = kLowest, .inverse_temperature = inverse_temperature, .total = 0};
  for (const float maximum : scratch.maxima) row.max = std::max(row.max, maximum);
  kernels_.chunk_exp_sums(x, vocab_size_, row.max, inverse_temperature, scratch.sums.data());
  for (const float part : scratch.sums) {
    // In a row that is not finite x - max is NaN: for NaN, for +inf and where all are -inf.
    if (std::isnan(part)) return {};
    row.total += units_of(part);
  }
  return row;
}

float Sampler::logprob(const float* logits, std::int32_t token, SamplerScratch& scratch) const {
  const Softmax row = softmax(logits, 1.0F, scratch);
  if (row.total == 0) return std::numeric_limits<float>::quiet_NaN();
  return log_probability(logits[token], row.max, 1.0F, row.total);
}

std::optional<Sample> Sampler::sample(const float* logits, const SampleContext& context,
                                      SamplerScratch& scratch) const {
  assert(context.pending < 0);
  const SamplingParams& params = context.params;
  const float* x = logits;
  if (params.repetition_penalty != 1.0F || !context.bad_words.empty()) {
    scratch.logits.assign(logits, logits + vocab_size_);
    if (params.repetition_penalty != 1.0F)
      penalize(logits, context.tokens, params.repetition_penalty, scratch.logits.data());
    ban(context.bad_words, context.tokens, scratch.logits.data());
    x = scratch.logits.data();
  }

  const bool greedy = params.temperature == 0.0F;
  const Softmax row = softmax(x, greedy ? 1.0F : 1.0F / params.temperature, scratch);
  if (row.total == 0) return std::nullopt;

  Sample result;
  const bool filtered =
      (params.top_k > 0 && params.top_k < vocab_size_) || params.top_p < 1.0F || params.min_p > 0.0F;
  if (greedy) {
    result.token = argmax(row, scratch);
    result.logprob = log_probability(row.max, row.max, 1.0F, row.total);
  } else if (filtered) {
    result = draw_filtered(row, context, scratch);
  } else {
    result = draw(row, context.uniform, scratch);
  }
  if (params.raw_logprobs) result.logprob = logprob(logits, result.token, scratch);
  return result;
}

std::int32_t Sampler::argmax(const Softmax& row, const SamplerScratch& scratch) const {
  const auto chunk =
      std::find(scratch.maxima.begin(), scratch.maxima.end(), row.max) - scratch.maxima.begin();
  const float* found = std::find(row.x + chunk * kVocabChunk, row.x + vocab_size_, row.max);
  return static_cast<std::int32_t>(found - row.x);
}

// Inverse CDF: first the chunk that the target falls into, then the token within it.
Sample Sampler::draw(const Softmax& row, double uniform, const SamplerScratch& scratch) const {
  std::uint64_t rest = units_at(uniform, row.total);
  std::size_t chunk = 0;
  while (rest >= units_of(scratch.sums[chunk])) rest -= units_of(scratch.sums[chunk++]);

  const std::int64_t begin = static_cast<std::int64_t>(chunk) * kVocabChunk;
  const std::int64_t count = std::min(kVocabChunk, vocab_size_ - begin);
  float weights[kVocabChunk];
  kernels_.exp_weights(row.x + begin, count, row.max, row.inverse_temperature, weights);
  // The chunk's sum is rounded otherwise than its tokens: past their end the last one that weighs is taken.
  std::int64_t token = -1;
  for (std::int64_t i = 0; i < count; ++i) {
    if (weights[i] == 0.0F) continue;
    token = begin + i;
    if (rest < units_of(weights[i])) break;
    rest -= units_of(weights[i]);
  }
  assert(token >= 0);
  return {static_cast<std::int32_t>(token),
          log_probability(row.x[token], row.max, row.inverse_temperature, row.total)};
}

// Candidates: every token with logit >= bound (and > -inf), in vocabulary order. Whole chunks are passed over
// by their maximum.
void Sampler::keep_at_least(const Softmax& row, float bound, SamplerScratch& scratch) const {
  scratch.candidates.clear();
  bound = std::max(bound, std::numeric_limits<float>::lowest());
  for (std::size_t c = 0; c < scratch.maxima.size(); ++c) {
    if (!(scratch.maxima[c] >= bound)) continue;
    const std::int64_t begin = static_cast<std::int64_t>(c) * kVocabChunk;
    const std::int64_t end = std::min(begin + kVocabChunk, vocab_size_);
    for (std::int64_t i = begin; i < end; ++i)
      if (row.x[i] >= bound) scratch.candidates.push_back({row.x[i], static_cast<std::int32_t>(i), 0.0F});
  }
}

// Candidates: the k largest logits and all that equal the smallest of them, in vocabulary order. The k-th
// largest chunk maximum bounds the k-th largest logit from below, so only few logits are ever looked at.
void Sampler::keep_top(const Softmax& row, std::int64_t k, SamplerScratch& scratch) const {
  auto& values = scratch.values;
  const auto kth_largest = [&] {
    std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<>());
    return values[static_cast<std::size_t>(k - 1)];
  };
  float bound = kLowest;
  if (k <= static_cast<std::int64_t>(scratch.maxima.size())) {
    values.assign(scratch.maxima.begin(), scratch.maxima.end());
    bound = kth_largest();
  }
  keep_at_least(row, bound, scratch);
  if (k >= static_cast<std::int64_t>(scratch.candidates.size())) return;
  values.clear();
  for (const auto& candidate : scratch.candidates) values.push_back(candidate.logit);
  const float kth = kth_largest();
  std::erase_if(scratch.candidates, [kth](const auto& candidate) { return candidate.logit < kth; });
}

// Fills in the candidates' weights and returns their sum.
std::uint64_t Sampler::weigh_candidates(const Softmax& row, SamplerScratch& scratch) const {
  auto& values = scratch.values;
  values.clear();
  for (const auto& candidate : scratch.candidates) values.push_back(candidate.logit);
  kernels_.exp_weights(values.data(), static_cast<std::int64_t>(values.size()), row.max,
                       row.inverse_temperature, values.data());
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < values.size(); ++i) total += units_of(scratch.candidates[i].weight = values[i]);
  return total;
}

// Candidates: the shortest head, by (logit falling, id rising), whose weights reach `mass`. Finds the head's
// last token as quickselect finds the k-th, with weights instead of counts; a flat distribution's head has
// tens of thousands.
void Sampler::keep_mass(std::uint64_t mass, SamplerScratch& scratch) const {
  constexpr std::ptrdiff_t kSortedAtOnce = 64;
  const auto before = [](const auto& a, const auto& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  scratch.partitioned = scratch.candidates;
  auto first = scratch.partitioned.begin();
  auto last = scratch.partitioned.end();
  while (last - first > kSortedAtOnce) {
    const auto middle = first + (last - first) / 2;
    const auto pivot = std::max(std::min(*first, *middle, before),
                                std::min(std::max(*first, *middle, before), *(last - 1), before), before);
    // Never empty and never all: the pivot itself is on the far side, and the median of three has one before
    // it.
    const auto far_side = std::partition(first, last, [&](const auto& c) { return before(c, pivot); });
    std::uint64_t head = 0;
    for (auto c = first; c != far_side; ++c) head += units_of(c->weight);
    if (head >= mass) {
      last = far_side;
    } else {
      mass -= head;
      first = far_side;
    }
  }
  std::sort(first, last, before);
  while (first != last && units_of(first->weight) < mass) mass -= units_of(first++->weight);
  if (first == last) return;  // the mass is within rounding of everything
  std::erase_if(scratch.candidates, [&](const auto& c) { return before(*first, c); });
}

Sample Sampler::draw_filtered(const Softmax& row, const SampleContext& context,
                              SamplerScratch& scratch) const {
  constexpr std::int64_t kUsualHead = 256;  // a trained model's nucleus is seldom larger
  const SamplingParams& params = context.params;
  const bool top_k = params.top_k > 0 && params.top_k < vocab_size_;
  std::uint64_t total = row.total;
  if (top_k) {
    keep_top(row, params.top_k, scratch);
    total = weigh_candidates(row, scratch);
  }
  if (params.top_p < 1.0F) {
    const std::uint64_t mass = units_of_head(params.top_p, total);
    if (!top_k) {
      keep_top(row, std::min(kUsualHead, vocab_size_), scratch);
      if (weigh_candidates(row, scratch) < mass) {
        keep_at_least(row, kLowest, scratch);
        weigh_candidates(row, scratch);
      }
    }
    keep_mass(mass, scratch);
  } else if (!top_k) {
    // min-p alone. The bound is a little low, for the exact comparison of weights below.
    const double slack = 1e-3;
    const double bound = row.max + (std::log(params.min_p) - slack) / row.inverse_temperature;
    keep_at_least(row, std::nextafter(static_cast<float>(bound), kLowest), scratch);
    weigh_candidates(row, scratch);
  }

  auto& candidates = scratch.candidates;
  // The largest logit weighs 1, so min_p compares with the weights as they are.
  std::erase_if(candidates,
                [&](const auto& c) { return c.weight < params.min_p || units_of(c.weight) == 0; });
  assert(!candidates.empty());
  total = 0;
  for (const auto& candidate : candidates) total += units_of(candidate.weight);
  std::uint64_t rest = units_at(context.uniform, total);
  std::size_t chosen = 0;
  while (rest >= units_of(candidates[chosen].weight)) rest -= units_of(candidates[chosen++].weight);
  const auto& candidate = candidates[chosen];
  return {candidate.id, log_probability(candidate.logit, row.max, row.inverse_temperature, total)};
}

}  // namespace octavo
