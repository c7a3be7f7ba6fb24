// Compiled once for each instruction set; see sampler_kernels.h.
#include "octavo/engine/sampler_kernels.h"

#include <algorithm>
#include <limits>

#include "octavo/base/simd.h"

namespace octavo::OCTAVO_ISA_NS {
namespace {

constexpr int kLanes = 16;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Calls body(vector) over x, the last vector filled up with -inf, which is neutral to max and to sums of exp.
template <typename Body>
void for_each_vector(const float* x, std::int64_t count, const Body& body) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(load(x + i));
  if (i < count) body(load_partial(x + i, static_cast<int>(count - i), kLowest));
}

// A NaN may or may not survive here; chunk_exp_sums, which always follows, keeps it.
void chunk_maxima(const float* x, std::int64_t count, float* maxima) {
  for (std::int64_t begin = 0; begin < count; begin += kVocabChunk) {
    V16 largest = set1(kLowest);
    for_each_vector(x + begin, std::min(kVocabChunk, count - begin),
                    [&](V16 v) { largest = max(v, largest); });
    *maxima++ = max_lane(largest);
  }
}

V16 weights_of(V16 x, V16 max, V16 inverse_temperature) { return exp((x - max) * inverse_temperature); }

void chunk_exp_sums(const float* x, std::int64_t count, float max, float inverse_temperature, float* sums) {
  const V16 vmax = set1(max);
  const V16 scale = set1(inverse_temperature);
  for (std::int64_t begin = 0; begin < count; begin += kVocabChunk) {
    V16 total = zero();
    for_each_vector(x + begin, std::min(kVocabChunk, count - begin),
                    [&](V16 v) { total += weights_of(v, vmax, scale); });
    *sums++ = sum(total);
  }
}

void exp_weights(const float* x, std::int64_t count, float max, float inverse_temperature, float* weights) {
  const V16 vmax = set1(max);
  const V16 scale = set1(inverse_temperature);
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(weights + i, weights_of(load(x + i), vmax, scale));
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    store_partial(weights + i, weights_of(load_partial(x + i, rest, kLowest), vmax, scale), rest);
  }
}

}  // namespace

extern const SamplerKernels kSamplerKernels;
const SamplerKernels kSamplerKernels = {&chunk_maxima, &chunk_exp_sums, &exp_weights};

}  // namespace octavo::OCTAVO_ISA_NS
