#include "octavo/train/trainer.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/report/files.h"
#include "octavo/report/page.h"
#include "octavo/rl/advantages.h"
#include "octavo/train/device.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Seeds of validations are those of their own stream: the same prompts are answered with the same draws each
// time.
constexpr std::uint64_t kValidationStream = 0x76616c69U;

int thread_count(const ClusterConfig& cluster) {
  const auto all = static_cast<int>(std::thread::hardware_concurrency());
  return cluster.threads > 0 ? static_cast<int>(cluster.threads) : std::max(1, all);
}

ChatTemplate chat_template(const TokenizerConfig& config) {
  const ChatTemplateKwargs& kwargs = config.chat_template_kwargs;
  ChatTemplate chat = ChatTemplate::from_folder(config.name, {.name = config.chat_template,
                                                              .enable_thinking = kwargs.enable_thinking,
                                                              .date_string = kwargs.date_string});
  const auto warn = [](const char* key) {
    fmt::print(stderr, "octavo: policy.tokenizer.chat_template_kwargs.{} has no effect: {}\n", key,
               "this model's chat template does not ask for it");
  };
  if (kwargs.enable_thinking && chat.format() != ChatTemplate::Format::kQwen3) warn("enable_thinking");
  if (kwargs.date_string && chat.format() != ChatTemplate::Format::kLlama31) warn("date_string");
  return chat;
}

PolicyOptions policy_options(const Recipe& recipe, at::Device device, bool trainable) {
  const GenerationConfig& g = recipe.policy.generation;
  const bool raw = g.vllm_cfg.logprobs_mode == "raw_logprobs";
  return {.bf16 = recipe.policy.precision == "bfloat16",
          .trainable = trainable,
          .distribution = raw ? TokenDistribution{}
                              : TokenDistribution{.temperature = g.temperature,
                                                  .top_p = g.top_p,
                                                  .top_k = g.top_k.value_or(0)},
          .max_positions = recipe.policy.max_total_sequence_length,
          .weights = recipe.policy.matched_fp8_forward ? weight_options(g)
                                                       : WeightOptions{.precision = Precision::kBF16},
          .device = device};
}

void load_policy(const std::string& folder, Policy& policy) {
  at::Tensor host = at::zeros({policy.layout().size()});
  load_parameters(Checkpoint(folder), policy.layout(), host);
  at::Tensor values = policy.values();
  values.copy_(host);
  policy.weights_changed();
}

}  // namespace

Trainer::Trainer(const Recipe& recipe, bool resume)
    : recipe_(recipe),
      spec_(load_model_spec(recipe.policy.model_name)),
      engine_pool_(thread_count(recipe.cluster)),
      trainer_pool_(thread_count(recipe.cluster)),
      tokenizer_(std::make_shared<const Tokenizer>(
          Tokenizer::from_file(recipe.policy.tokenizer.name + "/tokenizer.json"))),
      encoder_(*tokenizer_, chat_template(recipe.policy.tokenizer)),
      tasks_(open_tasks(recipe, encoder_)) {
  at::set_num_threads(thread_count(recipe.cluster));
  for (const std::string& warning : tasks_.warnings) fmt::print(stderr, "octavo: {}\n", warning);
  data_ = std::make_unique<DataLoader>(tasks_.train.data, recipe.data.shuffle,
                                       static_cast<std::uint64_t>(recipe.grpo.seed));

  status("loading the model");
  const at::Device device = training_device(recipe.cluster);
  engine_ = make_rollout_engine(recipe, device.is_cuda() ? "cuda" : "cpu", spec_, tokenizer_, engine_pool_);
  policy_ = std::make_unique<Policy>(spec_, policy_options(recipe, device, true), trainer_pool_);
  status("");
  fmt::print("engine and trainer on the {}\n", device.is_cuda() ? "GPU" : "CPU");
  const bool penalty = recipe.loss_fn.reference_policy_kl_penalty != 0;
  if (penalty) {
    reference_ = std::make_unique<Policy>(spec_, policy_options(recipe, device, false), trainer_pool_);
    load_policy(recipe.policy.model_name, *reference_);
  }
  learner_ = std::make_unique<Learner>(recipe_, *policy_, reference_.get());
  checkpoints_.emplace(recipe.checkpointing, recipe.policy.model_name);

  const std::vector<std::int64_t> steps = checkpoints_->steps();
  if (!resume && !steps.empty())
    fail(
        "{} holds checkpoints already (the latest is of step {}): resume the run with --resume, or name "
        "another checkpointing.checkpoint_dir",
        recipe.checkpointing.checkpoint_dir, steps.back());
  if (resume && !steps.empty()) {
    restore(steps.back());
  } else {
    load_policy(recipe.policy.model_name, *policy_);
  }
  // A run that was killed before its first step has left nothing to resume: it begins.
  const bool begun = std::filesystem::exists(recipe.logger.log_dir + "/metrics.jsonl");
  log_.emplace(resume && begun ? RunLog::resume(recipe.logger.log_dir, done_)
                               : RunLog::create(recipe.logger.log_dir, dump_recipe(recipe)));
  refit_engine(static_cast<std::uint64_t>(done_), KvPolicy::kRecompute);
}

Trainer::~Trainer() {
  // The collecting thread uses this object.
  if (collecting_.valid()) collecting_.wait();
}

void Trainer::status(const std::string& text) const {
  if (isatty(STDERR_FILENO) == 0) return;
  fmt::print(stderr, "\r\033[K{}", text);
  std::fflush(stderr);
}

double Trainer::refit_engine(std::uint64_t version, KvPolicy kv) {
  const auto begin = Clock::now();
  refit(*engine_, *policy_, version, kv);
  return seconds_since(begin);
}

// One step's rollouts with their advantages. With dynamic sampling: groups with spread, as many as a step
// has.
Experience Trainer::collect(std::int64_t step) {
  const GrpoConfig& grpo = recipe_.grpo;
  const SamplingPlan plan = training_plan(recipe_.policy, grpo.num_generations_per_prompt);
  const auto wanted = static_cast<std::size_t>(grpo.num_prompts_per_step * grpo.num_generations_per_prompt);
  const std::int64_t prompts =
      grpo.use_dynamic_sampling
          ? static_cast<std::int64_t>(std::ceil(grpo.batch_multiplier * double(grpo.num_prompts_per_step)))
          : grpo.num_prompts_per_step;
  Experience experience;
  double sum = 0;
  double squares = 0;
  std::int64_t correct = 0;
  for (std::int64_t round = 0; experience.rollouts.size() < wanted; ++round) {
    if (round == grpo.dynamic_sampling_max_gen_batches)
      fail(
          "step {}: {} batches of {} prompts gave only {} completions in groups with unequal rewards, of the "
          "{} "
          "that the step needs; the task is too easy or too hard, or raise "
          "grpo.dynamic_sampling_max_gen_batches",
          step, round, prompts, experience.rollouts.size(), wanted);
    const auto generate_begin = Clock::now();
    std::vector<Trajectory> rollouts = generate(*engine_, data_->next(prompts), encoder_, plan,
                                                static_cast<std::uint64_t>(grpo.seed), groups_);
    groups_ += prompts;
    experience.rollout_s += seconds_since(generate_begin);
    const auto judge_begin = Clock::now();
    try {
      judge(*tasks_.train.verifier, rollouts);
    } catch (...) {
      unjudged_ = std::move(rollouts);
      throw;
    }
    experience.reward_s += seconds_since(judge_begin);

    std::vector<std::int64_t> groups;
    std::vector<float> rewards;
    for (const Trajectory& r : rollouts) {
      groups.push_back(r.group);
      rewards.push_back(r.reward);
      experience.generated_tokens += static_cast<std::int64_t>(r.tokens.size());
      sum += r.reward;
      squares += double(r.reward) * r.reward;
      correct += r.correct ? 1 : 0;
    }
    experience.generated += static_cast<std::int64_t>(rollouts.size());
    std::vector<std::uint8_t> kept(rollouts.size(), 1);
    if (grpo.use_dynamic_sampling) kept = has_spread(groups, rewards);
    for (std::size_t i = 0; i < rollouts.size() && experience.rollouts.size() < wanted; ++i)
      if (kept[i] != 0) experience.rollouts.push_back(std::move(rollouts[i]));
  }
  const auto generated = static_cast<double>(experience.generated);
  experience.reward_mean = sum / generated;
  experience.reward_std = std::sqrt(std::max(0.0, squares / generated - std::pow(sum / generated, 2)));
  experience.accuracy = static_cast<double>(correct) / generated;

  std::vector<std::int64_t> groups;
  std::vector<std::int64_t> lengths;
  std::vector<std::uint8_t> truncated;
  std::vector<float> rewards;
  for (const Trajectory& r : experience.rollouts) {
    groups.push_back(r.group);
    lengths.push_back(static_cast<std::int64_t>(r.tokens.size()));
    truncated.push_back(r.truncated ? 1 : 0);
    rewards.push_back(r.reward);
  }
  if (grpo.reward_scaling.enabled) scale_rewards(grpo.reward_scaling, rewards);
  if (grpo.reward_shaping.enabled) shape_rewards(grpo.reward_shaping, lengths, truncated, rewards);
  experience.advantages = compute_advantages(grpo, groups, rewards).advantages;
  return experience;
}

void Trainer::start_collecting(std::int64_t step) {
  collecting_ = std::async(std::launch::async, [this, step] { return collect(step); });
}

Experience Trainer::take_collected() { return collecting_.get(); }

bool Trainer::data_is_used_up() const { return data_->position().epoch >= recipe_.grpo.max_num_epochs; }

bool Trainer::is_validated(std::int64_t step) const {
  const GrpoConfig& g = recipe_.grpo;
  if (!tasks_.validation) return false;
  const bool last = step == g.max_num_steps;
  return (g.val_period > 0 && step % g.val_period == 0 && step >= g.val_start_at) || (last && g.val_at_end);
}

void Trainer::validate(StepMetrics& metrics) {
  status("validating");
  const GrpoConfig& g = recipe_.grpo;
  const SamplingPlan plan = validation_plan(recipe_.policy, g.val_num_generations_per_prompt);
  std::vector<TaskSample> samples;
  for (std::int64_t i = 0; i < std::min(tasks_.validation->data->size(), g.max_val_samples); ++i)
    samples.push_back(tasks_.validation->data->at(i));
  std::vector<Trajectory> rollouts = generate(
      *engine_, samples, encoder_, plan, static_cast<std::uint64_t>(g.seed) ^ (kValidationStream << 32), 0);
  judge(*tasks_.validation->verifier, rollouts);
  double reward = 0;
  double correct = 0;
  double tokens = 0;
  for (const Trajectory& r : rollouts) {
    reward += r.reward;
    correct += r.correct ? 1 : 0;
    tokens += static_cast<double>(r.tokens.size());
  }
  const auto count = static_cast<double>(rollouts.size());
  metrics.set("val/accuracy", correct / count);
  metrics.set("val/reward", reward / count);
  metrics.set("val/response_length", tokens / count);
  fmt::print("validation: accuracy {:.3f}, reward {:.3f} over {} completions\n", correct / count,
             reward / count, rollouts.size());
  const auto shown =
      std::min(rollouts.size(), static_cast<std::size_t>(recipe_.logger.num_val_samples_to_print));
  for (std::size_t i = 0; i < shown; ++i)
    fmt::print("  {} → {} ({})\n", printable(rollouts[i].sample.messages.back().content),
               printable(rollouts[i].text), rollouts[i].correct ? "right" : "wrong");
}

bool Trainer::train_step(std::int64_t step) {
  const auto step_begin = Clock::now();
  const AsyncGrpoConfig& async = recipe_.grpo.async_grpo;
  weights_intact_ = true;
  current_ = {};
  position_before_ = data_->position();
  groups_before_ = groups_;
  StepTimes times;
  if (waiting_.empty()) {
    status(fmt::format("step {}: generating", step));
    current_ = collect(step);
  } else {
    current_ = std::move(waiting_.front());
    waiting_.clear();
  }
  const bool collects_ahead = async.enabled && step < recipe_.grpo.max_num_steps && !data_is_used_up();
  if (collects_ahead) start_collecting(step + 1);

  const LearningResult result =
      learner_->learn(current_.rollouts, current_.advantages, [&](std::int64_t done, std::int64_t all) {
        status(fmt::format("step {}: training {}/{}", step, done, all));
      });
  weights_intact_ = false;

  const auto version = static_cast<std::uint64_t>(step);
  const KvPolicy kv = async.recompute_kv_cache_after_weight_updates ? KvPolicy::kRecompute : KvPolicy::kKeep;
  if (collects_ahead && !async.in_flight_weight_updates) waiting_.push_back(take_collected());
  times.refit_s = refit_engine(version, kv);
  if (collects_ahead && async.in_flight_weight_updates) waiting_.push_back(take_collected());
  times.step_s = seconds_since(step_begin);

  StepMetrics metrics = step_metrics(step, current_, result, times);
  for (const auto& [key, value] : first_validation_.values) metrics.set("start_" + key, value);
  first_validation_ = {};
  if (is_validated(step)) validate(metrics);
  for (const Transcript& sample : step_samples(step, current_, result.train_logprobs, *tokenizer_))
    log_->write(sample);
  log_->write(metrics);
  last_metrics_ = nlohmann::json::object();
  for (const auto& [key, value] : metrics.values) last_metrics_[key] = value;
  status("");
  fmt::print("{}\n", progress_line(metrics, recipe_.grpo.max_num_steps));
  std::fflush(stdout);
  done_ = step;

  const CheckpointingConfig& saving = recipe_.checkpointing;
  if (saving.enabled && step % saving.save_period == 0) save(step, last_metrics_);
  if (!recipe_.grpo.stop_at_validation_metric) return false;
  std::string key = *recipe_.grpo.stop_at_validation_metric;
  if (!key.starts_with("val")) key = "val/" + key;
  std::replace(key.begin(), key.end(), ':', '/');
  return last_metrics_.contains(key) &&
         last_metrics_[key].get<double>() >= *recipe_.grpo.stop_at_validation_threshold;
}

void Trainer::run(const std::atomic<bool>& stop) {
  if (done_ == 0 && recipe_.grpo.val_at_start && tasks_.validation) {
    validate(first_validation_);
  }
  bool good_enough = false;
  while (done_ < recipe_.grpo.max_num_steps && !stop && !good_enough &&
         !(waiting_.empty() && data_is_used_up())) {
    try {
      good_enough = train_step(done_ + 1);
    } catch (const std::exception& error) {
      status("");
      keep_failed_step(done_ + 1, error.what());
      throw;
    }
  }
  if (recipe_.checkpointing.enabled && saved_ != done_ && done_ > 0) save(done_, last_metrics_);
  if (done_ == 0) return;
  fmt::print("{} after step {}; {}\n", stop ? "stopped" : "done", done_, write_report(log_->folder()));
  if (stop) fmt::print("go on with --resume\n");
}

void Trainer::save(std::int64_t step, const nlohmann::json& metrics) {
  status("saving");
  nlohmann::json waiting = nlohmann::json::array();
  for (const Experience& e : waiting_) waiting.push_back(to_json(e));
  checkpoints_->save(step, *policy_, learner_->optimizer(),
                     {{"epoch", data_->position().epoch},
                      {"next_sample", data_->position().next},
                      {"groups", groups_},
                      {"waiting", std::move(waiting)}},
                     metrics);
  saved_ = step;
  status("");
}

void Trainer::restore(std::int64_t step) {
  const nlohmann::json state = checkpoints_->restore(step, *policy_, learner_->optimizer());
  policy_->weights_changed();
  data_->seek({.epoch = state.at("epoch"), .next = state.at("next_sample")});
  groups_ = state.at("groups");
  for (const nlohmann::json& e : state.at("waiting")) waiting_.push_back(experience_from_json(e));
  last_metrics_ = state.at("metrics");
  done_ = step;
  saved_ = step;
  fmt::print("resumed after step {} from {}\n", step, checkpoints_->folder(step));
}

// What went wrong is thrown on; this must not hide it.
void Trainer::keep_failed_step(std::int64_t step, const std::string& reason) {
  try {
    if (collecting_.valid()) collecting_.wait();
    if (!unjudged_.empty()) current_ = {.rollouts = std::move(unjudged_)};
    nlohmann::json failed = to_json(current_);
    failed["step"] = step;
    failed["reason"] = reason;
    const std::string path = fmt::format("{}/failed_step_{}.json", log_->folder(), step);
    write_file(path, failed.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    fmt::print(stderr, "octavo: step {} failed; its rollouts are in {}\n", step, path);
    // A checkpoint of an asynchronous run would lack the rollouts that were being collected.
    const bool whole = weights_intact_ && !recipe_.grpo.async_grpo.enabled;
    if (whole && recipe_.checkpointing.enabled && saved_ != done_ && done_ > 0) {
      groups_ = groups_before_;
      data_->seek(position_before_);
      save(done_, last_metrics_);
      fmt::print(stderr, "octavo: the weights before it are in {}\n", checkpoints_->folder(done_));
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "octavo: the failed step could not be kept: {}\n", error.what());
  }
}

}  // namespace octavo
