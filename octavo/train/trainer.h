// The GRPO run: rollouts, rewards, advantages, loss, optimizer step, refit, and again
// (Shao et al. 2024, arXiv:2402.03300).
#pragma once

#include <atomic>
#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "octavo/config/recipe.h"
#include "octavo/report/run_log.h"
#include "octavo/tasks/tasks.h"
#include "octavo/train/checkpoints.h"
#include "octavo/train/learner.h"
#include "octavo/train/rollout_engine.h"
#include "octavo/train/rollouts.h"
#include "octavo/train/step_report.h"

namespace octavo {

class Trainer {
 public:
  // Loads model, data and engine, and with `resume` the latest checkpoint. Error for what does not fit
  // together.
  Trainer(const Recipe& recipe, bool resume);
  ~Trainer();

  // Trains to the end of the recipe, or until `stop` is set, whose step is finished; saves, and writes the
  // report. A step that fails leaves its rollouts in FOLDER/failed_step_N.json and a checkpoint of the
  // weights before it.
  void run(const std::atomic<bool>& stop);

 private:
  Experience collect(std::int64_t step);
  void start_collecting(std::int64_t step);
  Experience take_collected();
  bool train_step(std::int64_t step);  // true: the validation is good enough to stop
  // Seconds.
  double refit_engine(std::uint64_t version, KvPolicy kv);
  void validate(StepMetrics& metrics);
  bool is_validated(std::int64_t step) const;
  void save(std::int64_t step, const nlohmann::json& metrics);
  void restore(std::int64_t step);
  void keep_failed_step(std::int64_t step, const std::string& reason);
  void status(const std::string& text) const;  // on a terminal: what is going on within the step
  bool data_is_used_up() const;

  Recipe recipe_;
  ModelSpec spec_;
  ThreadPool engine_pool_;   // the engine's thread owns it
  ThreadPool trainer_pool_;  // for quantizing in the trainer while the engine may be generating
  std::shared_ptr<const Tokenizer> tokenizer_;
  PromptEncoder encoder_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Policy> policy_;
  std::unique_ptr<Policy> reference_;
  std::unique_ptr<Learner> learner_;
  std::unique_ptr<DataLoader> data_;
  Tasks tasks_;
  std::optional<Checkpoints> checkpoints_;
  std::optional<RunLog> log_;

  // What a checkpoint keeps beside weights and optimizer.
  std::int64_t done_ = 0;            // steps
  std::int64_t groups_ = 0;          // prompts generated for; numbers their seeds
  std::vector<Experience> waiting_;  // asynchronous: collected for the next step; at most one

  std::future<Experience> collecting_;
  std::int64_t saved_ = 0;  // the last step with a checkpoint
  // For keep_failed_step: what the step in progress trains on, or generated when its verifier failed.
  Experience current_;
  std::vector<Trajectory> unjudged_;
  DataPosition position_before_;  // where the step in progress began
  std::int64_t groups_before_ = 0;
  nlohmann::json last_metrics_;   // of the last finished step
  StepMetrics first_validation_;  // before step 1, whose metrics get it
  bool weights_intact_ = true;    // no update of the step in progress has begun
};

}  // namespace octavo
