// The loops of sampling that touch the whole vocabulary, one table of functions an instruction set. All
// tables give the same bits.
#pragma once

#include <cstdint>

#include "octavo/base/cpu_features.h"

namespace octavo {

// The vocabulary is worked on in chunks of this many entries (the last may be shorter): small enough that a
// draw only has to look into one, large enough that the horizontal sum at its end costs nothing.
inline constexpr std::int64_t kVocabChunk = 128;
constexpr std::int64_t vocab_chunks(std::int64_t count) { return (count + kVocabChunk - 1) / kVocabChunk; }

struct SamplerKernels {
  // maxima[c] = the largest of chunk c of x [count].
  void (*chunk_maxima)(const float* x, std::int64_t count, float* maxima);
  // sums[c] = Σ exp((x[i] - max) * inverse_temperature) over chunk c: sixteen running sums, added as a tree.
  void (*chunk_exp_sums)(const float* x, std::int64_t count, float max, float inverse_temperature,
                         float* sums);
  // weights[i] = exp((x[i] - max) * inverse_temperature).
  void (*exp_weights)(const float* x, std::int64_t count, float max, float inverse_temperature,
                      float* weights);
};

const SamplerKernels& sampler_kernels(Isa isa);

}  // namespace octavo
