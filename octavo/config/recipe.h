// A training recipe: what the YAML file says, resolved and checked. One struct a section, members named as
// the keys.
//
// The schema is that of NeMo-RL's GRPO configurations, so that its users' files and habits work here; keys
// that are Octavo's own are marked. docs/recipes.md lists every key, made from the same table that reads them
// (schema.h).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace octavo {

struct RewardShapingConfig {
  bool enabled = false;
  std::int64_t overlong_buffer_length = 128;
  double overlong_buffer_penalty = 1.0;
  std::int64_t max_response_length = 0;  // policy.max_total_sequence_length
  std::optional<double> stop_properly_penalty_coef;

  bool operator==(const RewardShapingConfig&) const = default;
};

struct RewardScalingConfig {
  bool enabled = false;
  double source_min = 0.0;
  double source_max = 1.0;
  double target_min = 0.0;
  double target_max = 1.0;

  bool operator==(const RewardScalingConfig&) const = default;
};

struct AsyncGrpoConfig {
  bool enabled = false;
  std::int64_t max_trajectory_age_steps = 1;
  bool in_flight_weight_updates = false;
  bool recompute_kv_cache_after_weight_updates = false;

  bool operator==(const AsyncGrpoConfig&) const = default;
};

struct GrpoConfig {
  std::int64_t num_prompts_per_step = 32;
  std::int64_t num_generations_per_prompt = 16;
  std::int64_t max_num_epochs = 1;
  std::int64_t max_num_steps = 1'000'000;
  bool normalize_rewards = true;
  bool use_leave_one_out_baseline = true;
  std::optional<double> advantage_clip_low;
  std::optional<double> advantage_clip_high;
  std::int64_t val_period = 10;  // 0: never
  std::int64_t val_start_at = -1;
  bool val_at_start = false;
  bool val_at_end = false;
  std::int64_t max_val_samples = 256;
  std::int64_t val_num_generations_per_prompt = 1;
  std::optional<std::string> stop_at_validation_metric;
  std::optional<double> stop_at_validation_threshold;
  std::int64_t seed = 42;
  bool overlong_filtering = false;
  bool use_dynamic_sampling = false;
  std::int64_t dynamic_sampling_max_gen_batches = 10;
  double batch_multiplier = 1.0;
  std::optional<double> seq_logprob_error_threshold;
  bool skip_reference_policy_logprobs_calculation = false;
  RewardShapingConfig reward_shaping;
  RewardScalingConfig reward_scaling;
  AsyncGrpoConfig async_grpo;

  bool operator==(const GrpoConfig&) const = default;
};

// ClippedPGLoss. Where a member is a choice, the schema has checked it.
struct LossConfig {
  double reference_policy_kl_penalty = 0.01;
  std::string reference_policy_kl_type = "k3";  // k1, k2, k3
  std::optional<double> kl_input_clamp_value = 20.0;
  std::optional<double> kl_output_clamp_value = 10.0;
  double ratio_clip_min = 0.2;
  double ratio_clip_max = 0.2;
  std::optional<double> ratio_clip_c;
  bool use_on_policy_kl_approximation = false;
  bool use_importance_sampling_correction = false;
  std::optional<std::string> truncated_importance_sampling_type;  // tis, icepop, seq-mask-tis
  std::optional<double> truncated_importance_sampling_ratio;
  std::optional<double> truncated_importance_sampling_ratio_min;
  bool sequence_level_importance_ratios = false;
  bool token_level_loss = true;
  bool force_on_policy_ratio = false;
  bool use_cispo = false;
  bool disable_ppo_ratio = false;
  double positive_example_nll_weight = 0.0;

  bool operator==(const LossConfig&) const = default;
};

// What the model's chat template is given besides the messages; see chat_template.h.
struct ChatTemplateKwargs {
  std::optional<bool> enable_thinking;
  std::optional<std::string> date_string;

  bool operator==(const ChatTemplateKwargs&) const = default;
};

struct TokenizerConfig {
  std::string name;                       // policy.model_name
  std::string chat_template = "default";  // default, or a format's name (chat_template.h)
  ChatTemplateKwargs chat_template_kwargs;

  bool operator==(const TokenizerConfig&) const = default;
};

struct OptimizerConfig {
  std::string name = "torch.optim.AdamW";
  double lr = 5e-6;
  double weight_decay = 0.01;
  std::vector<double> betas = {0.9, 0.999};  // two
  double eps = 1e-8;

  bool operator==(const OptimizerConfig&) const = default;
};

// One of torch's learning-rate schedulers; a factor on optimizer.lr unless said otherwise. See lr_schedule.h.
struct LrPhase {
  enum class Kind { kConstant, kLinear, kCosine };

  Kind kind = Kind::kConstant;
  double start_factor = 1.0;     // linear: at the phase's first step
  double end_factor = 1.0;       // linear: from total_iters on
  double factor = 1.0;           // constant: before total_iters; 1 from then on
  std::int64_t total_iters = 0;  // linear, constant; cosine: torch's T_max
  double eta_min = 0.0;          // cosine: the learning rate that it falls to

  bool operator==(const LrPhase&) const = default;
};

// Phase i + 1 takes over at step milestones[i], counting its own steps from 0. No phases: lr stays.
struct LrSchedule {
  std::vector<LrPhase> phases;
  std::vector<std::int64_t> milestones;  // one less than phases, rising

  bool operator==(const LrSchedule&) const = default;
};

// policy.generation.vllm_cfg: the FP8 block and the few others that mean something to Octavo's engine.
struct VllmConfig {
  std::string precision = "bfloat16";  // bfloat16, fp8
  std::int64_t num_first_layers_in_bf16 = 0;
  std::int64_t num_last_layers_in_bf16 = 0;
  bool use_weight_pow2_scale = false;      // also spelt pow2_weight_scaling_factors
  bool use_activation_pow2_scale = false;  // also spelt pow2_activation_scaling_factors
  std::vector<std::string> quantization_ignored_layer_kws;
  bool use_deep_gemm = true;                         // on a GPU, with fp8; false: cuBLASLt
  std::string logprobs_mode = "processed_logprobs";  // or raw_logprobs
  std::int64_t max_model_len = 0;                    // policy.max_total_sequence_length

  bool operator==(const VllmConfig&) const = default;
};

// policy.generation.octavo_cfg: Octavo's own settings of the engine (engine_options.h).
struct OctavoConfig {
  std::string scale_formula = "divide";  // divide, nemo_rl
  std::int64_t max_sequences = 64;
  std::int64_t max_batch_tokens = 512;
  double kv_cache_gib = 1.0;
  bool prefix_cache = true;

  bool operator==(const OctavoConfig&) const = default;
};

struct GenerationConfig {
  std::int64_t max_new_tokens = 0;  // policy.max_total_sequence_length
  double temperature = 1.0;
  double top_p = 1.0;
  std::optional<std::int64_t> top_k;
  double val_temperature = 1.0;  // temperature, top_p, top_k
  double val_top_p = 1.0;
  std::optional<std::int64_t> val_top_k;
  std::vector<std::int64_t> stop_token_ids;
  std::vector<std::string> stop_strings;
  VllmConfig vllm_cfg;
  OctavoConfig octavo_cfg;

  bool operator==(const GenerationConfig&) const = default;
};

struct PolicyConfig {
  std::string model_name;  // a Hugging Face model folder
  TokenizerConfig tokenizer;
  std::int64_t train_global_batch_size = 512;  // sequences of one optimizer step
  std::int64_t train_micro_batch_size = 4;
  std::int64_t logprob_batch_size = 0;  // train_micro_batch_size
  std::int64_t max_total_sequence_length = 512;
  std::string precision = "bfloat16";  // of the trainer's compute: bfloat16, float32
  double max_grad_norm = 1.0;
  bool matched_fp8_forward =
      false;  // Octavo's own: the trainer's forward sees the rollout's quantized numbers
  OptimizerConfig optimizer;
  LrSchedule scheduler;
  GenerationConfig generation;

  bool operator==(const PolicyConfig&) const = default;
};

struct DatasetConfig {
  std::string dataset_name = "ResponseDataset";  // a JSONL file at data_path, or a built-in generated task
  std::optional<std::string> data_path;
  std::string input_key = "prompt";
  std::string output_key = "answer";
  std::optional<std::string> prompt_file;         // a text with {} for the prompt
  std::optional<std::string> system_prompt_file;  // a text put before as the system's message
  std::string env_name = "math";
  double split_validation_size = 0.0;  // share of the data kept for validation
  std::int64_t seed = 42;
  std::map<std::string, std::string> task_options;  // Octavo's own: settings of a built-in task

  bool operator==(const DatasetConfig&) const = default;
};

struct DataConfig {
  std::int64_t max_input_seq_length = 0;  // policy.max_total_sequence_length
  bool shuffle = true;
  DatasetConfig train;  // what it leaves out is taken from data.default
  std::optional<DatasetConfig> validation;

  bool operator==(const DataConfig&) const = default;
};

// env.NAME: how the answers of the data sets with env_name NAME are judged. Octavo's own keys.
struct EnvConfig {
  std::string verifier = "number";   // exact, number, boxed, regex, choice, countdown, command
  std::string pattern;               // regex
  std::vector<std::string> command;  // command: program and arguments
  double timeout_s = 30.0;           // command: for one answer
  std::int64_t num_workers = 1;      // command: processes that judge in parallel

  bool operator==(const EnvConfig&) const = default;
};

struct CheckpointingConfig {
  bool enabled = true;
  std::string checkpoint_dir = "results/grpo";
  std::optional<std::string> metric_name = "val:accuracy";  // null: keep the latest
  bool higher_is_better = true;
  std::optional<std::int64_t> keep_top_k = 3;  // null: keep all
  std::int64_t save_period = 10;

  bool operator==(const CheckpointingConfig&) const = default;
};

struct LoggerConfig {
  std::string log_dir = "logs";  // the run's folder
  std::int64_t num_val_samples_to_print = 0;
  bool tensorboard_enabled = false;

  bool operator==(const LoggerConfig&) const = default;
};

struct ClusterConfig {
  std::string device = "auto";  // Octavo's own: auto (the GPU if there is one), cpu, cuda
  std::int64_t threads = 0;     // Octavo's own; 0: one a core

  bool operator==(const ClusterConfig&) const = default;
};

struct Recipe {
  GrpoConfig grpo;
  LossConfig loss_fn;
  PolicyConfig policy;
  DataConfig data;
  std::map<std::string, EnvConfig> env;
  CheckpointingConfig checkpointing;
  LoggerConfig logger;
  ClusterConfig cluster;

  bool operator==(const Recipe&) const = default;
};

// Reads a recipe with what it inherits (`defaults:`), applies `overrides` ("key.path=value", the value in
// YAML), resolves `${...}`, and checks keys, types, ranges and what keys demand of one another. `warnings`
// gets one line for each key that NeMo-RL knows and that has no effect here. Throws Error, with file and
// line, for what is wrong, unknown (with the nearest known key), or known and not supported where leaving it
// out would change the result.
Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides,
                   std::vector<std::string>& warnings);

// The whole recipe as YAML, every key written out. load_recipe of it gives the same recipe.
std::string dump_recipe(const Recipe& recipe);

}  // namespace octavo
