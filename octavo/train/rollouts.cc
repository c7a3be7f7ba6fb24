#include "octavo/train/rollouts.h"

#include <algorithm>

#include "octavo/base/error.h"
#include "octavo/engine/philox.h"

namespace octavo {
namespace {

SamplingPlan plan_of(const PolicyConfig& policy, std::int64_t n) {
  const GenerationConfig& g = policy.generation;
  SamplingPlan plan;
  plan.params.max_tokens = g.max_new_tokens;
  plan.params.n = n;
  plan.params.stop = g.stop_strings;
  for (const std::int64_t id : g.stop_token_ids)
    plan.params.stop_token_ids.push_back(static_cast<std::int32_t>(id));
  plan.params.raw_logprobs = g.vllm_cfg.logprobs_mode == "raw_logprobs";
  plan.max_length = std::min(policy.max_total_sequence_length, g.vllm_cfg.max_model_len);
  return plan;
}

std::uint64_t seed_of(std::uint64_t seed, std::int64_t group) {
  const auto at = static_cast<std::uint64_t>(group);
  const PhiloxCounter random =
      philox4x32({static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(at >> 32), 0, 0},
                 {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  return (static_cast<std::uint64_t>(random[0]) << 32) | random[1];
}

}  // namespace

SamplingPlan training_plan(const PolicyConfig& policy, std::int64_t n) {
  SamplingPlan plan = plan_of(policy, n);
  plan.params.temperature = static_cast<float>(policy.generation.temperature);
  plan.params.top_p = static_cast<float>(policy.generation.top_p);
  plan.params.top_k = policy.generation.top_k.value_or(0);
  return plan;
}

SamplingPlan validation_plan(const PolicyConfig& policy, std::int64_t n) {
  SamplingPlan plan = plan_of(policy, n);
  plan.params.temperature = static_cast<float>(policy.generation.val_temperature);
  plan.params.top_p = static_cast<float>(policy.generation.val_top_p);
  plan.params.top_k = policy.generation.val_top_k.value_or(0);
  return plan;
}

std::vector<Trajectory> generate(Engine& engine, const std::vector<TaskSample>& samples,
                                 const PromptEncoder& encoder, const SamplingPlan& plan, std::uint64_t seed,
                                 std::int64_t first_group) {
  std::vector<Request> requests;
  std::vector<std::vector<std::int32_t>> prompts;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    prompts.push_back(encoder.encode(samples[i].messages).ids);
    const auto room = plan.max_length - static_cast<std::int64_t>(prompts.back().size());
    if (room < 1)
      fail(
          "the prompt of {} has {} tokens, which leaves no room for an answer: raise "
          "policy.max_total_sequence_length ({}), or lower data.max_input_seq_length",
          samples[i].id, prompts.back().size(), plan.max_length);
    Request request{.prompt_ids = prompts.back(), .sampling = plan.params};
    request.sampling.seed = seed_of(seed, first_group + static_cast<std::int64_t>(i));
    request.sampling.max_tokens = std::min(plan.params.max_tokens, room);
    requests.push_back(std::move(request));
  }

  std::vector<Output> outputs = engine.generate(std::move(requests));
  std::vector<Trajectory> rollouts;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    Output& output = outputs[i];
    const std::size_t p = i / static_cast<std::size_t>(plan.params.n);
    if (output.finish_reason == FinishReason::kError || output.finish_reason == FinishReason::kAbort)
      fail_system("the engine gave up on a completion of {}: {}", samples[p].id, output.finish_message);
    rollouts.push_back({.group = first_group + static_cast<std::int64_t>(p),
                        .sample = samples[p],
                        .prompt = prompts[p],
                        .tokens = std::move(output.token_ids),
                        .logprobs = std::move(output.logprobs),
                        .weight_versions = std::move(output.weight_versions),
                        .text = std::move(output.text),
                        .finish_reason = std::string(name_of(output.finish_reason)),
                        .truncated = output.finish_reason == FinishReason::kLength});
  }
  return rollouts;
}

void judge(Verifier& verifier, std::vector<Trajectory>& rollouts) {
  std::vector<Completion> completions;
  completions.reserve(rollouts.size());
  for (const Trajectory& r : rollouts)
    completions.push_back({.sample = &r.sample, .text = r.text, .truncated = r.truncated});
  const std::vector<Judgement> judgements = verifier.judge(completions);
  for (std::size_t i = 0; i < rollouts.size(); ++i) {
    rollouts[i].reward = judgements[i].reward;
    rollouts[i].correct = judgements[i].correct;
  }
}

nlohmann::json to_json(const std::vector<Trajectory>& rollouts) {
  nlohmann::json out = nlohmann::json::array();
  for (const Trajectory& r : rollouts) {
    nlohmann::json messages = nlohmann::json::array();
    for (const Message& m : r.sample.messages) messages.push_back({{"role", m.role}, {"content", m.content}});
    out.push_back({{"group", r.group},
                   {"id", r.sample.id},
                   {"messages", std::move(messages)},
                   {"answer", r.sample.answer},
                   {"line", r.sample.line},
                   {"prompt_ids", r.prompt},
                   {"token_ids", r.tokens},
                   {"logprobs", r.logprobs},
                   {"weight_versions", r.weight_versions},
                   {"text", r.text},
                   {"finish_reason", r.finish_reason},
                   {"truncated", r.truncated},
                   {"reward", r.reward},
                   {"correct", r.correct}});
  }
  return out;
}

std::vector<Trajectory> rollouts_from_json(const nlohmann::json& json) {
  std::vector<Trajectory> rollouts;
  for (const nlohmann::json& j : json) {
    Trajectory r{.group = j.at("group"),
                 .prompt = j.at("prompt_ids"),
                 .tokens = j.at("token_ids"),
                 .logprobs = j.at("logprobs"),
                 .weight_versions = j.at("weight_versions"),
                 .text = j.at("text"),
                 .finish_reason = j.at("finish_reason"),
                 .truncated = j.at("truncated"),
                 .reward = j.at("reward"),
                 .correct = j.at("correct")};
    r.sample.id = j.at("id");
    r.sample.answer = j.at("answer");
    r.sample.line = j.at("line");
    for (const nlohmann::json& m : j.at("messages"))
      r.sample.messages.push_back({.role = m.at("role"), .content = m.at("content")});
    rollouts.push_back(std::move(r));
  }
  return rollouts;
}

}  // namespace octavo
