// Estimates of the KL divergence between two policies from one token's log-probabilities.
//
// J. Schulman, "Approximating KL divergence" (2020, joschu.net/blog/kl-approx.html). With the token drawn
// from P and d = log Q - log P: k1 = -d, k2 = d² / 2, k3 = exp(d) - 1 - d estimate KL(P || Q). The mean of k1
// and of k3 is the divergence; k3 is never negative.
#pragma once

#include "octavo/config/recipe.h"

namespace octavo {

double kl_k3(double d);

// The Jensen-Shannon divergence's estimate: the mean of k3 from P to the mixture M = (P + Q) / 2 and from Q
// to M. `p` and `q`: log-probabilities.
double js_divergence(double p, double q);

struct KlTerm {
  double value = 0;
  double slope = 0;  // d value / d current
};

// The loss's KL term of one token before its coefficient: w · k(d), with d = reference - current.
//
//   - d is clamped to ±kl_input_clamp_value; where that changes it, no gradient flows, through w neither;
//   - w = exp(current - generation) with use_on_policy_kl_approximation, 0 where FP32 cannot hold it; else
//     1. It has a gradient in either case, dw = w · d current: the token was drawn from a policy that the
//     update changes (Tang, Munos 2025, arXiv:2506.09477);
//   - the product is clamped to ±kl_output_clamp_value; where that changes it, no gradient flows.
KlTerm kl_term(const LossConfig& config, double current, double reference, double generation);

}  // namespace octavo
