// Rotary position embedding tables for every rope scaling that config.json can state.
#pragma once

#include <cstdint>
#include <vector>

#include "octavo/checkpoint/model_spec.h"

namespace octavo {

// The frequency of each of the head_dim / 2 pairs (Su et al., "RoFormer", 2021), scaled as config.json says:
// linear (position interpolation), llama3 (by wavelength bands, as Llama 3.1), yarn (Peng et al., "YaRN",
// 2023).
std::vector<float> rope_frequencies(const ModelSpec& spec);

// Fills cos and sin [positions, head_dim / 2], multiplied by yarn's attention factor. Angles are FP32
// products of position and frequency, as trainers compute them, so that both sides of a training run agree.
void fill_rope_table(const ModelSpec& spec, std::int64_t positions, float* cos, float* sin);

}  // namespace octavo
