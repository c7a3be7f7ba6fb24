#include "octavo/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace octavo {
namespace {

double llama3_frequency(const ModelSpec& spec, double frequency) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const auto original = static_cast<double>(spec.original_max_position_embeddings);
  if (wavelength < original / spec.high_freq_factor) return frequency;
  if (wavelength > original / spec.low_freq_factor) return frequency / spec.rope_factor;
  const double smooth =
      (original / wavelength - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor);
  return (1 - smooth) * frequency / spec.rope_factor + smooth * frequency;
}

// YaRN's dimension (as a real number) whose wave turns `rotations` times within the original context.
double yarn_dimension(const ModelSpec& spec, double rotations) {
  const auto original = static_cast<double>(spec.original_max_position_embeddings);
  return static_cast<double>(spec.head_dim) * std::log(original / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(spec.rope_theta));
}

}  // namespace

std::vector<float> rope_frequencies(const ModelSpec& spec) {
  const std::int64_t half = spec.head_dim / 2;
  std::vector<float> frequencies(static_cast<std::size_t>(half));
  double low = 0;
  double high = 0;
  if (spec.rope_scaling == RopeScaling::kYarn) {
    low = yarn_dimension(spec, spec.yarn_beta_fast);
    high = yarn_dimension(spec, spec.yarn_beta_slow);
    if (spec.yarn_truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, static_cast<double>(spec.head_dim - 1));
    if (low == high) high += 0.001;  // as the paper's code, to keep the ramp finite
  }
  for (std::int64_t i = 0; i < half; ++i) {
    double frequency =
        std::pow(spec.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(spec.head_dim));
    switch (spec.rope_scaling) {
      case RopeScaling::kDefault:
        break;
      case RopeScaling::kLinear:
        frequency /= spec.rope_factor;
        break;
      case RopeScaling::kLlama3:
        frequency = llama3_frequency(spec, frequency);
        break;
      case RopeScaling::kYarn: {
        const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
        frequency = frequency / spec.rope_factor * ramp + frequency * (1 - ramp);
        break;
      }
    }
    frequencies[static_cast<std::size_t>(i)] = static_cast<float>(frequency);
  }
  return frequencies;
}

void fill_rope_table(const ModelSpec& spec, std::int64_t positions, float* cos, float* sin) {
  const std::vector<float> frequencies = rope_frequencies(spec);
  const double factor = spec.rope_scaling == RopeScaling::kYarn ? spec.yarn_attention_factor : 1.0;
  for (std::int64_t p = 0; p < positions; ++p) {
    for (const float frequency : frequencies) {
      const double angle = static_cast<float>(p) * frequency;  // rounded to FP32 first
      *cos++ = static_cast<float>(std::cos(angle) * factor);
      *sin++ = static_cast<float>(std::sin(angle) * factor);
    }
  }
}

}  // namespace octavo
