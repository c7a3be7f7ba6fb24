#include "octavo/rl/sequence_mismatch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "octavo/base/error.h"

namespace octavo {
namespace {

using testing::ElementsAre;

// exp|lg - lo|: sequence 0: 2, 4 (mean 3); 1: 1, masked; 2: no tokens; 3: left out; 4: 1.5, 1.5.
struct Example {
  std::vector<float> previous = std::vector<float>(10, -5.0F);
  std::vector<float> generation = {-5 + std::log(2.0F), -5 - std::log(4.0F), -5, 77, 77, 77, 77, 77,
                                   -5 - std::log(1.5F), -5 + std::log(1.5F)};
  std::vector<std::uint8_t> token_mask = {1, 1, 1, 0, 0, 0, 1, 1, 1, 1};
  std::vector<std::uint8_t> sample_mask = {1, 1, 1, 0, 1};
  std::vector<float> rewards = {1, 1, 1, 1, 0};

  PolicyBatch view() const {
    return {.batch = 5,
            .sequence = 2,
            .previous = previous,
            .generation = generation,
            .token_mask = token_mask,
            .sample_mask = sample_mask,
            .rewards = rewards};
  }
};

TEST(SequenceMismatch, MeasuresWithoutAThreshold) {
  const SequenceMismatch m = sequence_mismatch(Example().view(), std::nullopt);
  EXPECT_NEAR(m.mult_prob_error[0], 3, 1e-5);
  EXPECT_NEAR(m.mult_prob_error[1], 1, 1e-5);
  EXPECT_EQ(m.mult_prob_error[2], 0);
  EXPECT_EQ(m.mult_prob_error[3], 0);
  EXPECT_NEAR(m.before.min, 1, 1e-5);
  EXPECT_NEAR(m.before.max, 3, 1e-5);
  EXPECT_NEAR(m.before.mean, 5.5 / 3, 1e-5);
  EXPECT_EQ(m.before.mean, m.after.mean);
  EXPECT_EQ(m.num_masked_seqs, 0);
  EXPECT_THAT(m.sample_mask, ElementsAre(1, 1, 1, 0, 1));
}

TEST(SequenceMismatch, DropsWhatIsAboveTheThreshold) {
  const SequenceMismatch m = sequence_mismatch(Example().view(), 1.4);
  EXPECT_THAT(m.sample_mask, ElementsAre(0, 1, 1, 0, 0));
  EXPECT_EQ(m.num_masked_seqs, 2);
  EXPECT_EQ(m.masked_correct_pct, 0.5);
  EXPECT_NEAR(m.before.max, 3, 1e-5);
  EXPECT_NEAR(m.after.max, 1, 1e-5);
}

TEST(SequenceMismatch, DropsAndReportsWhatIsNotANumber) {
  Example x;
  x.generation[9] = std::numeric_limits<float>::quiet_NaN();
  const SequenceMismatch m = sequence_mismatch(x.view(), 100.0);
  EXPECT_THAT(m.sample_mask, ElementsAre(1, 1, 1, 0, 0));
  EXPECT_TRUE(std::isnan(m.before.max));
  EXPECT_NEAR(m.after.max, 3, 1e-5);
}

TEST(SequenceMismatch, NothingIsLeft) {
  const SequenceMismatch m = sequence_mismatch(Example().view(), 0.5);
  EXPECT_EQ(m.num_masked_seqs, 3);
  EXPECT_EQ(m.after.max, 0);
  EXPECT_EQ(m.after.mean, 0);
  PolicyBatch view = Example().view();
  view.rewards = {};
  EXPECT_THROW(sequence_mismatch(view, 0.5), Error);
}

}  // namespace
}  // namespace octavo
