// The policy-gradient term of one token: what is to be made small, before importance weights and means.
#pragma once

#include "octavo/config/recipe.h"

namespace octavo {

enum class Clip { kNone, kLow, kHigh, kDual };

struct Surrogate {
  double loss = 0;
  double slope = 0;          // d loss / d log-ratio, which is d loss / d current at token level
  double ratio = 1;          // current / previous; REINFORCE: the log-probability, as NeMo-RL reports it
  double ratio_clamped = 1;  // to [1 - ratio_clip_min, 1 + ratio_clip_max]
  Clip clip = Clip::kNone;   // which bound decided the loss; CISPO: which one the ratio hit
};

// With A the advantage, r = exp(log_ratio), c(r) its clamp:
//   PPO, GRPO, GSPO        max(-A r, -A c(r))           (Schulman et al. 2017, arXiv:1707.06347)
//   dual clip, A < 0       at most -A ratio_clip_c      (Ye et al. 2020, arXiv:1912.09729)
//   CISPO                  -A c(r) current, c(r) without gradient     (MiniMax 2025, arXiv:2506.13585)
//   disable_ppo_ratio      -A current                   (REINFORCE; Ahmadian et al. 2024, arXiv:2402.14740)
//   force_on_policy_ratio  -A r with r = 1, whose gradient is REINFORCE's
// `log_ratio` is not read by the last two.
Surrogate surrogate(const LossConfig& config, double current, double log_ratio, double advantage);

}  // namespace octavo
