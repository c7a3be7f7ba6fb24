#include "octavo/rl/kl_divergence.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "octavo/rl/importance_weights.h"

namespace octavo {
namespace {

// The estimator k(d) and the slope of w · k(d) at w = 1, which is k(d) - k'(d): w rises as fast as `current`,
// d falls. Written out, since for k3 the difference of the two would lose all digits where exp(d) is large.
KlTerm weighted_estimate(const std::string& type, double d) {
  if (type == "k1") return {-d, 1 - d};
  if (type == "k2") return {d * d / 2, d * d / 2 - d};
  return {kl_k3(d), -d};
}

}  // namespace

// expm1 keeps the digits of small differences, where exp(d) - 1 would lose all of them.
double kl_k3(double d) { return std::expm1(d) - d; }

double js_divergence(double p, double q) {
  const double high = std::max(p, q);
  const double log_mixture = high + std::log1p(std::exp(std::min(p, q) - high)) - std::numbers::ln2;
  return (kl_k3(p - log_mixture) + kl_k3(q - log_mixture)) / 2;
}

KlTerm kl_term(const LossConfig& config, double current, double reference, double generation) {
  double d = reference - current;
  bool clamped = false;
  if (const auto& bound = config.kl_input_clamp_value) {
    clamped = std::abs(d) > *bound;
    d = std::clamp(d, -*bound, *bound);
  }
  const double weight = config.use_on_policy_kl_approximation ? importance_weight(current - generation) : 1.0;
  const KlTerm kl = weighted_estimate(config.reference_policy_kl_type, d);
  KlTerm term{weight * kl.value, clamped ? 0 : weight * kl.slope};
  if (const auto& bound = config.kl_output_clamp_value) {
    if (std::abs(term.value) > *bound) term = {std::copysign(*bound, term.value), 0};
  }
  return term;
}

}  // namespace octavo
