#include "octavo/train/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace octavo {

double learning_rate(const LrSchedule& schedule, double lr, std::int64_t step) {
  if (schedule.phases.empty()) return lr;
  std::size_t current = 0;
  std::int64_t begin = 0;
  while (current < schedule.milestones.size() && step >= schedule.milestones[current])
    begin = schedule.milestones[current++];
  const LrPhase& phase = schedule.phases[current];
  const auto done = static_cast<double>(step - begin);
  const auto total = static_cast<double>(std::max<std::int64_t>(phase.total_iters, 1));
  switch (phase.kind) {
    case LrPhase::Kind::kConstant:
      return done < total ? lr * phase.factor : lr;
    case LrPhase::Kind::kLinear:
      return lr *
             (phase.start_factor + (phase.end_factor - phase.start_factor) * std::min(1.0, done / total));
    case LrPhase::Kind::kCosine:
      return phase.eta_min + (lr - phase.eta_min) * (1 + std::cos(std::numbers::pi * done / total)) / 2;
  }
  return lr;
}

}  // namespace octavo
