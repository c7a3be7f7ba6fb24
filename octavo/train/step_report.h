// What a step tells: its metrics, some of its transcripts, its line on the screen.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "octavo/report/run_log.h"
#include "octavo/text/tokenizer.h"
#include "octavo/train/learner.h"
#include "octavo/train/rollouts.h"

namespace octavo {

// What a step trains on.
struct Experience {
  std::vector<Trajectory> rollouts;
  std::vector<float> advantages;
  std::int64_t generated = 0;  // rollouts, those that dynamic sampling dropped included
  std::int64_t generated_tokens = 0;
  double reward_mean = 0;  // of all that were generated, before shaping
  double reward_std = 0;
  double accuracy = 0;
  double rollout_s = 0;
  double reward_s = 0;
};

// For checkpoints of asynchronous runs, and for steps that failed.
nlohmann::json to_json(const Experience& experience);
Experience experience_from_json(const nlohmann::json& json);

struct StepTimes {
  double refit_s = 0;
  double step_s = 0;
};

// Keys as run_log.h has them.
StepMetrics step_metrics(std::int64_t step, const Experience& experience, const LearningResult& result,
                         const StepTimes& times);

// The transcripts of the first two completions of the first groups, with both sides' log-probabilities.
std::vector<Transcript> step_samples(std::int64_t step, const Experience& experience,
                                     const std::vector<std::vector<float>>& train_logprobs,
                                     const Tokenizer& tokenizer);

// "step 12/40  reward 0.531 …"
std::string progress_line(const StepMetrics& metrics, std::int64_t steps);

}  // namespace octavo
