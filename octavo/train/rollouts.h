// What one step generates: completions of prompts by the engine, in this process, and their judgement.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "octavo/config/recipe.h"
#include "octavo/engine/engine.h"
#include "octavo/tasks/data_set.h"
#include "octavo/tasks/prompt_encoder.h"
#include "octavo/tasks/verifier.h"

namespace octavo {

struct Trajectory {
  std::int64_t group = 0;  // rollouts of one prompt share it
  TaskSample sample;
  std::vector<std::int32_t> prompt;
  std::vector<std::int32_t> tokens;            // of the completion; at least one
  std::vector<float> logprobs;                 // the engine's
  std::vector<std::uint64_t> weight_versions;  // of each token
  std::string text;
  std::string finish_reason;
  bool truncated = false;
  float reward = 0;  // the verifier's; advantages may come from a shaped one
  bool correct = false;
};

// A checkpoint keeps rollouts that are waiting to be trained on.
nlohmann::json to_json(const std::vector<Trajectory>& rollouts);
std::vector<Trajectory> rollouts_from_json(const nlohmann::json& json);

struct SamplingPlan {
  SamplingParams params;        // n and seed are set for each prompt
  std::int64_t max_length = 0;  // tokens of prompt and completion
};
SamplingPlan training_plan(const PolicyConfig& policy, std::int64_t n);
SamplingPlan validation_plan(const PolicyConfig& policy, std::int64_t n);

// Generates plan.params.n completions of each sample. The seed of a prompt comes from (seed, its place
// `first_group` + i) alone, so the same step of a resumed run draws the same. Groups are numbered from
// first_group. Error for a prompt that leaves no room for a token; SystemError where the engine failed.
std::vector<Trajectory> generate(Engine& engine, const std::vector<TaskSample>& samples,
                                 const PromptEncoder& encoder, const SamplingPlan& plan, std::uint64_t seed,
                                 std::int64_t first_group);

// Fills reward and correct. What a verifier throws names it and the sample.
void judge(Verifier& verifier, std::vector<Trajectory>& rollouts);

}  // namespace octavo
