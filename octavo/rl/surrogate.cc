#include "octavo/rl/surrogate.h"

#include <algorithm>
#include <cmath>

namespace octavo {

Surrogate surrogate(const LossConfig& config, double current, double log_ratio, double advantage) {
  if (config.force_on_policy_ratio) return {.loss = -advantage, .slope = -advantage};
  if (config.disable_ppo_ratio)
    return {.loss = -advantage * current, .slope = -advantage, .ratio = current, .ratio_clamped = current};

  Surrogate s;
  s.ratio = std::exp(log_ratio);
  s.ratio_clamped = std::clamp(s.ratio, 1 - config.ratio_clip_min, 1 + config.ratio_clip_max);
  const Clip side = s.ratio < s.ratio_clamped   ? Clip::kLow
                    : s.ratio > s.ratio_clamped ? Clip::kHigh
                                                : Clip::kNone;
  if (config.use_cispo) {
    s.slope = -advantage * s.ratio_clamped;
    s.loss = s.slope * current;
    s.clip = side;
    return s;
  }
  // The clip decides where it makes the loss greater: upward of the band for A > 0, downward for A < 0.
  if ((side == Clip::kLow && advantage < 0) || (side == Clip::kHigh && advantage > 0)) {
    s.loss = -advantage * s.ratio_clamped;
    s.clip = side;
  } else if (advantage != 0) {  // 0 times a ratio that overflowed would be NaN
    s.loss = s.slope = -advantage * s.ratio;
  }
  if (config.ratio_clip_c && advantage < 0 && s.loss > -advantage * *config.ratio_clip_c) {
    s.loss = -advantage * *config.ratio_clip_c;
    s.slope = 0;
    s.clip = Clip::kDual;
  }
  return s;
}

}  // namespace octavo
