#include "octavo/config/recipe_rules.h"

#include "octavo/base/error.h"

namespace octavo {
namespace {

using Where = std::function<std::string(const std::string& key)>;

void demand(bool met, const Where& where, const char* key, const char* sentence) {
  if (!met) fail("{}: {} {}", where(key), key, sentence);
}

}  // namespace

void check_loss(const LossConfig& l, const Where& where) {
  const auto& type = l.truncated_importance_sampling_type;
  const auto& high = l.truncated_importance_sampling_ratio;
  const auto& low = l.truncated_importance_sampling_ratio_min;
  const char* type_key = "loss_fn.truncated_importance_sampling_type";
  demand(!type || l.use_importance_sampling_correction, where, type_key,
         "needs loss_fn.use_importance_sampling_correction: true");
  demand(!type || high, where, type_key, "needs loss_fn.truncated_importance_sampling_ratio");
  demand(!type || *type == "tis" || low, where, type_key,
         "needs loss_fn.truncated_importance_sampling_ratio_min");
  demand(!type || *type != "seq-mask-tis" || !l.sequence_level_importance_ratios, where, type_key,
         "cannot be seq-mask-tis with loss_fn.sequence_level_importance_ratios");
  demand(!low || !high || *low <= *high, where, "loss_fn.truncated_importance_sampling_ratio_min",
         "must not be above loss_fn.truncated_importance_sampling_ratio");
  demand(!l.ratio_clip_c || *l.ratio_clip_c > 1, where, "loss_fn.ratio_clip_c", "must be above 1");
  demand(!l.sequence_level_importance_ratios || !l.token_level_loss, where,
         "loss_fn.sequence_level_importance_ratios", "needs loss_fn.token_level_loss: false");
  demand(!l.use_cispo || !(l.disable_ppo_ratio || l.force_on_policy_ratio ||
                           l.sequence_level_importance_ratios || l.ratio_clip_c || !l.token_level_loss),
         where, "loss_fn.use_cispo",
         "excludes disable_ppo_ratio, force_on_policy_ratio, sequence_level_importance_ratios and "
         "ratio_clip_c, and "
         "needs token_level_loss");
}

void check_recipe(const Recipe& r, const Where& where) {
  check_loss(r.loss_fn, where);
  const std::int64_t rollouts = r.grpo.num_prompts_per_step * r.grpo.num_generations_per_prompt;
  demand(rollouts % r.policy.train_global_batch_size == 0, where, "policy.train_global_batch_size",
         "must divide grpo.num_prompts_per_step * grpo.num_generations_per_prompt");
  demand(
      !r.loss_fn.force_on_policy_ratio || rollouts == r.policy.train_global_batch_size, where,
      "loss_fn.force_on_policy_ratio",
      "needs policy.train_global_batch_size = grpo.num_prompts_per_step * grpo.num_generations_per_prompt");
  demand(!r.grpo.use_leave_one_out_baseline || r.grpo.num_generations_per_prompt > 1, where,
         "grpo.use_leave_one_out_baseline", "needs grpo.num_generations_per_prompt above 1");
  demand(!r.grpo.async_grpo.enabled || r.loss_fn.use_importance_sampling_correction, where,
         "grpo.async_grpo.enabled", "needs loss_fn.use_importance_sampling_correction: true");
  demand(!r.grpo.skip_reference_policy_logprobs_calculation || r.loss_fn.reference_policy_kl_penalty == 0,
         where, "grpo.skip_reference_policy_logprobs_calculation",
         "needs loss_fn.reference_policy_kl_penalty: 0");
  demand(!r.grpo.stop_at_validation_metric || r.grpo.stop_at_validation_threshold, where,
         "grpo.stop_at_validation_metric", "needs grpo.stop_at_validation_threshold");
  demand(r.grpo.reward_scaling.source_min < r.grpo.reward_scaling.source_max, where,
         "grpo.reward_scaling.source_min", "must be below grpo.reward_scaling.source_max");
  const auto& metric = r.checkpointing.metric_name;
  demand(!metric || metric->starts_with("val:") || metric->starts_with("train:"), where,
         "checkpointing.metric_name",
         "must be val:NAME or train:NAME, such as val:accuracy, or null for the latest");
  const GenerationConfig& g = r.policy.generation;
  demand(
      !(g.top_p < 1 || g.top_k) || g.vllm_cfg.logprobs_mode == "raw_logprobs" ||
          r.loss_fn.reference_policy_kl_penalty == 0,
      where, g.top_k ? "policy.generation.top_k" : "policy.generation.top_p",
      "needs loss_fn.reference_policy_kl_penalty: 0, since the divergence to the reference is one of whole "
      "distributions; or policy.generation.vllm_cfg.logprobs_mode: raw_logprobs");
  demand(!r.policy.matched_fp8_forward || r.policy.generation.vllm_cfg.precision == "fp8", where,
         "policy.matched_fp8_forward", "needs policy.generation.vllm_cfg.precision: fp8");
  demand(r.policy.optimizer.betas.size() == 2 && r.policy.optimizer.betas[0] < 1 &&
             r.policy.optimizer.betas[1] < 1,
         where, "policy.optimizer.kwargs.betas", "must be two numbers below 1");
  demand(r.policy.generation.octavo_cfg.max_batch_tokens >= r.policy.generation.octavo_cfg.max_sequences,
         where, "policy.generation.octavo_cfg.max_batch_tokens",
         "must be at least policy.generation.octavo_cfg.max_sequences");
  for (const DatasetConfig* d : {&r.data.train, r.data.validation ? &*r.data.validation : nullptr}) {
    if (d == nullptr || d->dataset_name != "ResponseDataset") continue;
    demand(d->data_path.has_value(), where,
           d == &r.data.train ? "data.train.data_path" : "data.validation.data_path",
           "is missing: the JSONL file, or name a built-in task with dataset_name");
    if (!r.env.contains(d->env_name))
      fail(
          "{}: the data set's env_name is '{}', but there is no section env.{} that says how answers are "
          "judged",
          where("data.train.env_name"), d->env_name, d->env_name);
  }
  for (const auto& [name, env] : r.env) {
    if (env.verifier == "regex" && env.pattern.empty())
      fail("{}: env.{}.verifier is regex, which needs env.{}.pattern", where("env." + name + ".verifier"),
           name, name);
    if (env.verifier == "command" && env.command.empty())
      fail("{}: env.{}.verifier is command, which needs env.{}.command", where("env." + name + ".verifier"),
           name, name);
  }
}

}  // namespace octavo
