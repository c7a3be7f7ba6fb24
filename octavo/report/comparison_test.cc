#include "octavo/report/comparison.h"

#include <gmock/gmock.h>

#include <cmath>

#include "octavo/base/error.h"
#include "octavo/checkpoint/test_folder.h"
#include "octavo/report/run_log.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// A run whose reward is `reward` in the last tenth of its steps and 0 before.
std::string make_run(const TestFolder& folder, const std::string& name, double reward, int steps = 20,
                     const std::string& recipe = "grpo: {seed: 1}\n") {
  RunLog log = RunLog::create(folder.file(name), recipe);
  for (int step = 1; step <= steps; ++step) {
    StepMetrics metrics{.step = step};
    metrics.set("reward/mean", step > steps - steps / 10 ? reward : 0);
    log.write(metrics);
  }
  return folder.file(name);
}

TEST(Compare, GroupsSeedsAndTakesMeansSpreadsAndDifferences) {
  const TestFolder folder;
  std::vector<std::string> warnings;
  const auto groups = group_runs({make_run(folder, "bf16-seed1", 1.0), make_run(folder, "fp8_s1", 2.0),
                                  make_run(folder, "bf16-seed2", 3.0, 20, "grpo: {seed: 2}\n"),
                                  make_run(folder, "fp8_s2", 3.0), "fp8=" + make_run(folder, "third", 7.0)},
                                 0, warnings);
  EXPECT_THAT(warnings, IsEmpty());
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_EQ(groups[0].name, "bf16");
  EXPECT_EQ(groups[1].name, "fp8");
  const Comparison comparison = compare(groups);
  EXPECT_EQ(comparison.first_step, 19);
  EXPECT_EQ(comparison.last_step, 20);
  ASSERT_EQ(comparison.metrics.size(), 1U);
  const ComparedMetric& reward = comparison.metrics[0];
  // 1, 3: mean 2, variance 2. 2, 3, 7: mean 4, variance 7. Error of the difference: sqrt(2/2 + 7/3).
  EXPECT_DOUBLE_EQ(reward.spreads[0]->mean, 2.0);
  EXPECT_DOUBLE_EQ(*reward.spreads[0]->std, std::sqrt(2.0));
  EXPECT_DOUBLE_EQ(reward.spreads[1]->mean, 4.0);
  EXPECT_DOUBLE_EQ(*reward.spreads[1]->std, std::sqrt(7.0));
  EXPECT_FALSE(reward.differences[0].has_value());
  EXPECT_DOUBLE_EQ(reward.differences[1]->mean, 2.0);
  EXPECT_DOUBLE_EQ(*reward.differences[1]->error, std::sqrt(1.0 + 7.0 / 3.0));
  EXPECT_THAT(to_markdown(groups, comparison), HasSubstr("| fp8 | 3 | 4 ± 2.6 |"));
  EXPECT_THAT(to_markdown(groups, comparison), HasSubstr("| fp8 | | +2 ± 1.8 |"));
}

TEST(Compare, ASingleRunHasNoSpread) {
  const TestFolder folder;
  std::vector<std::string> warnings;
  const auto groups = group_runs({make_run(folder, "a", 1), make_run(folder, "b", 3)}, 0, warnings);
  const Comparison comparison = compare(groups);
  EXPECT_FALSE(comparison.metrics[0].spreads[0]->std.has_value());
  EXPECT_FALSE(comparison.metrics[0].differences[1]->error.has_value());
  EXPECT_DOUBLE_EQ(comparison.metrics[0].differences[1]->mean, 2.0);
}

TEST(Compare, UsesTheStepsThatAllRunsHave) {
  const TestFolder folder;
  std::vector<std::string> warnings;
  const Comparison comparison =
      compare(group_runs({make_run(folder, "short", 5, 10), make_run(folder, "long", 5, 40)}, 0, warnings));
  EXPECT_EQ(comparison.first_step, 10);
  EXPECT_EQ(comparison.last_step, 10);
  EXPECT_EQ(comparison.longest, 40);
  EXPECT_DOUBLE_EQ(comparison.metrics[0].spreads[0]->mean, 5.0);
  EXPECT_DOUBLE_EQ(comparison.metrics[0].spreads[1]->mean, 0.0);
}

TEST(Compare, ShowsWhereRecipesDiffer) {
  const TestFolder folder;
  std::vector<std::string> warnings;
  const auto a = make_run(folder, "a", 1, 1, "grpo: {seed: 1}\npolicy: {precision: bf16, betas: [1, 2]}\n");
  const auto b =
      make_run(folder, "b", 1, 1, "grpo: {seed: 2}\npolicy: {precision: fp8, betas: [1, 2], pow2: true}\n");
  const Comparison comparison = compare(group_runs({a, b}, 0, warnings));
  EXPECT_THAT(warnings, IsEmpty());
  ASSERT_EQ(comparison.recipe_differences.size(), 2U);
  EXPECT_EQ(comparison.recipe_differences[0].first, "policy.pow2");
  EXPECT_THAT(comparison.recipe_differences[0].second, ElementsAre("", "true"));
  EXPECT_EQ(comparison.recipe_differences[1].first, "policy.precision");
  EXPECT_THAT(comparison.recipe_differences[1].second, ElementsAre("bf16", "fp8"));
  group_runs({"x=" + a, "x=" + b}, 0, warnings);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("'x' differ in policy.pow2"), HasSubstr("policy.precision")));
}

TEST(Compare, RefusesTheSameRunTwice) {
  const TestFolder folder;
  std::vector<std::string> warnings;
  const std::string run = make_run(folder, "a", 1);
  EXPECT_THAT(message_of<Error>([&] {
                group_runs({run, run + "/"}, 0, warnings);
              }),
              HasSubstr("given twice"));
  EXPECT_THAT(message_of<Error>([&] { flat_yaml("a: [", "r.yaml"); }), HasSubstr("r.yaml:1: not valid YAML"));
}

}  // namespace
}  // namespace octavo
