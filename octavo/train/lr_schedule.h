// The learning rate of each optimizer step, as torch's schedulers give it.
#pragma once

#include <cstdint>

#include "octavo/config/recipe.h"

namespace octavo {

// Step 0 is the first. LinearLR, ConstantLR and CosineAnnealingLR in their closed forms, one after another at
// the milestones (SequentialLR); `lr` is optimizer.lr.
double learning_rate(const LrSchedule& schedule, double lr, std::int64_t step);

}  // namespace octavo
