// What a training run leaves on disk, and the writer of it.
//
//   runs/NAME/recipe.yaml     the resolved recipe
//   runs/NAME/metrics.jsonl   one line a step (StepMetrics)
//   runs/NAME/samples.jsonl   some transcripts of some steps, one line each (Transcript)
//   runs/NAME/events.out.tfevents.*   the same numbers for TensorBoard, one file a start or resume
//   runs/NAME/report.html     see page.h
//
// A line of metrics.jsonl is one flat object. `step` is there always; any other key may be missing from a
// line. Numbers that are not finite are written as null. Keys with a meaning to the report (others are
// charted under their own name):
//
//   step                              integer, rising
//   weight_version                    integer: the engine's weights that this step's rollouts came from
//   wall_s                            seconds since the run began, without the time between a stop and its
//   resume reward/mean, reward/std           over the step's completions, before shaping accuracy share of
//   completions that the verifier calls right val/accuracy, val/reward          of a validation pass; only on
//   the steps that have one response_length/mean, /max        tokens truncated_share                   share
//   of completions that ended by length loss, grad_norm, lr, entropy, kl_penalty token_mult_prob_error,
//   gen_kl_error, policy_kl_error, js_divergence_error    rollout against trainer importance_weight/mean
//   before truncation importance_weight/out_of_band_share   share of tokens whose weight the correction
//   changed importance_weight/histogram       {"edges": [n + 1 numbers], "counts": [n integers]}
//   clip/low_share, clip/high_share   share of tokens whose policy ratio was clipped
//   dropped_sequences                 sequences left out of the loss
//   tokens_per_s                      generated tokens by rollout time
//   time/rollout_s, time/reward_s, time/logprob_s, time/train_s, time/refit_s, time/step_s
//
// A line of samples.jsonl: {"step", "id", "prompt", "completion", "reward", "answer", "finish_reason",
// "tokens": [{"text", "lp_gen", "lp_train"}]}; lp_gen is the rollout's log-probability of the token, lp_train
// the trainer's recomputed one.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace octavo {

class EventFile;

// counts[i] values lie in [edges[i], edges[i + 1]).
struct Histogram {
  std::vector<double> edges;
  std::vector<std::int64_t> counts;
};

// Importance weights over bins of equal ratio around 1; what lies outside, 0 included, falls into the
// outermost bins. Values that are not finite are left out.
Histogram importance_weight_histogram(std::span<const float> weights);

struct StepMetrics {
  std::int64_t step = 0;
  std::vector<std::pair<std::string, double>> values;  // keys as above, without step and wall_s
  std::optional<Histogram> importance_weights;

  void set(std::string_view key, double value) { values.emplace_back(key, value); }
};

struct SampleToken {
  std::string text;
  double lp_gen = 0;
  double lp_train = 0;
};

struct Transcript {
  std::int64_t step = 0;
  std::string id;
  std::string prompt;
  std::string completion;
  double reward = 0;
  std::string answer;
  std::string finish_reason;
  std::vector<SampleToken> tokens;  // of the completion
};

// Appends to a run's folder. Every write has reached the operating system when it returns, so a killed
// process loses at most the line it was in; a line cut so is dropped at the next resume and ignored by the
// readers. Not for use from several threads at once.
class RunLog {
 public:
  // Begins a run: makes the folder. Error if it holds a run already.
  static RunLog create(const std::string& folder, std::string_view recipe_yaml);

  // Continues a run after `step`, the last one that its checkpoint has seen (0: none): lines beyond it are
  // dropped. Error if the folder holds no run, or its files are damaged before that.
  static RunLog resume(const std::string& folder, std::int64_t step);

  RunLog(RunLog&&) noexcept;
  RunLog& operator=(RunLog&&) = delete;
  ~RunLog();

  // A step's samples come before its metrics. Steps rise. SystemError if the disk is full.
  void write(const Transcript& sample);
  void write(const StepMetrics& metrics);

  const std::string& folder() const { return folder_; }

 private:
  RunLog(std::string folder, std::int64_t last_step, double wall_s);

  std::string folder_;
  std::int64_t last_step_;
  double earlier_wall_s_;  // of the run before this start of it
  std::chrono::steady_clock::time_point start_;
  int metrics_fd_ = -1;
  int samples_fd_ = -1;
  std::unique_ptr<EventFile> events_;
};

}  // namespace octavo
