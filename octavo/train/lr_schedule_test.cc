// The schedule against the definitions of torch's schedulers, worked out by hand.
#include "octavo/train/lr_schedule.h"

#include <gtest/gtest.h>

namespace octavo {
namespace {

TEST(LrSchedule, NoneIsConstant) { EXPECT_EQ(learning_rate({}, 3e-4, 1000), 3e-4); }

// LinearLR(start_factor=0.1, end_factor=1.0, total_iters=5), then ConstantLR(factor=0.5, total_iters=3), then
// CosineAnnealingLR(T_max=10, eta_min=1e-5), SequentialLR(milestones=[5, 10]), lr 1e-3.
TEST(LrSchedule, PhasesFollowOneAnother) {
  LrSchedule schedule;
  schedule.phases = {
      {.kind = LrPhase::Kind::kLinear, .start_factor = 0.1, .end_factor = 1.0, .total_iters = 5},
      {.kind = LrPhase::Kind::kConstant, .factor = 0.5, .total_iters = 3},
      {.kind = LrPhase::Kind::kCosine, .total_iters = 10, .eta_min = 1e-5}};
  schedule.milestones = {5, 10};
  const std::vector<double> want = {
      1e-4, 2.8e-4,         4.6e-4,        6.4e-4, 8.2e-4,  // from a tenth up
      5e-4, 5e-4,           5e-4,          1e-3,   1e-3,    // half for three steps
      1e-3, 9.757729756e-4, 9.054634122e-4};
  for (std::size_t step = 0; step < want.size(); ++step)
    EXPECT_NEAR(learning_rate(schedule, 1e-3, static_cast<std::int64_t>(step)), want[step], 1e-11) << step;
  EXPECT_NEAR(learning_rate(schedule, 1e-3, 15), (1e-3 + 1e-5) / 2, 1e-11);  // a quarter of the wave
  EXPECT_NEAR(learning_rate(schedule, 1e-3, 20), 1e-5, 1e-11);               // half of it
}

}  // namespace
}  // namespace octavo
