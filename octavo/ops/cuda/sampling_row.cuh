// A row of logits as a sampling task sees it, and the arithmetic of octavo/engine/sampler.cc on it, to the
// bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "octavo/ops/cuda/kernels.h"
#include "octavo/ops/sampling_units.h"

namespace octavo::cuda {

inline constexpr int kVocabChunk = 128;  // that of the CPU's sampler
inline constexpr unsigned kWholeWarp = 0xffffffffU;

__host__ __device__ inline std::int64_t chunks_of(std::int64_t vocab) {
  return (vocab + kVocabChunk - 1) / kVocabChunk;
}
// Words of a bit for each token.
__host__ __device__ inline std::int64_t mask_words(std::int64_t vocab) { return (vocab + 31) / 32; }

// What one task keeps between the kernels.
struct TaskScratch {
  float* maxima;  // [chunks] of the logits as penalties and bans leave them
  float* sums;    // [chunks] of their weights
  float* raw_maxima;
  float* raw_sums;        // of the untouched logits, at temperature 1
  std::uint32_t* seen;    // [mask_words] tokens to penalize
  std::uint32_t* banned;  // [mask_words]

  __host__ __device__ static std::int64_t floats(std::int64_t vocab) {
    return 4 * chunks_of(vocab) + 2 * mask_words(vocab);
  }
  __device__ TaskScratch(float* scratch, std::int64_t task, std::int64_t vocab)
      : maxima(scratch + task * floats(vocab)),
        sums(maxima + chunks_of(vocab)),
        raw_maxima(sums + chunks_of(vocab)),
        raw_sums(raw_maxima + chunks_of(vocab)),
        seen(reinterpret_cast<std::uint32_t*>(raw_sums + chunks_of(vocab))),
        banned(seen + mask_words(vocab)) {}
};

__device__ inline bool has_bit(const std::uint32_t* mask, std::int64_t i) {
  return (mask[i / 32] >> (i % 32) & 1U) != 0;
}

// The logits of a task, penalized and banned.
struct SampleRow {
  const float* x;
  int vocab;
  float penalty;
  const std::uint32_t* seen;    // null: nothing is penalized
  const std::uint32_t* banned;  // null: nothing is banned

  __device__ SampleRow(const float* logits, std::int64_t vocabulary, const SampleTask& task,
                       const TaskScratch& scratch)
      : x(logits),
        vocab(static_cast<int>(vocabulary)),
        penalty(task.penalty),
        seen(task.penalty == 1.0F ? nullptr : scratch.seen),
        banned(task.num_bans == 0 ? nullptr : scratch.banned) {}

  __device__ float operator[](std::int64_t i) const {
    float value = x[i];
    if (seen != nullptr && has_bit(seen, i))
      value = value < 0 ? __fmul_rn(value, penalty) : __fdiv_rn(value, penalty);
    if (banned != nullptr && has_bit(banned, i)) value = -INFINITY;
    return value;
  }
};

// simd.h's exp, operation by operation.
__device__ inline float exp_as_cpu(float a) {
  const float x = -87.0F > a ? -87.0F : a;
  const float n = rintf(__fmul_rn(x, 1.44269504088896341F));
  float r = __fmaf_rn(n, -0.693359375F, x);
  r = __fmaf_rn(n, 2.12194440e-4F, r);
  float p = 1.9875691500e-4F;
  p = __fmaf_rn(p, r, 1.3981999507e-3F);
  p = __fmaf_rn(p, r, 8.3334519073e-3F);
  p = __fmaf_rn(p, r, 4.1665795894e-2F);
  p = __fmaf_rn(p, r, 1.6666665459e-1F);
  p = __fmaf_rn(p, r, 5.0000001201e-1F);
  p = __fmaf_rn(p, __fmul_rn(r, r), __fadd_rn(r, 1.0F));
  if (isnan(a)) return a;
  if (a < -87.0F) return 0.0F;
  return __fmul_rn(p, __int_as_float((static_cast<int>(n) + 127) << 23));
}

// What a softmax is made of: the weight of x is exp((x - max) * inverse_temperature).
struct SoftmaxShape {
  float max;
  float inverse_temperature;

  __device__ float exponent(float x) const { return __fmul_rn(__fsub_rn(x, max), inverse_temperature); }
  __device__ float weight(float x) const { return exp_as_cpu(exponent(x)); }
  __device__ float log_probability(float x, std::uint64_t total) const {
    return __double2float_rn(static_cast<double>(exponent(x)) -
                             log(static_cast<double>(total) / kUnitsOfOne));
  }
};

}  // namespace octavo::cuda
