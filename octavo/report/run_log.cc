#include "octavo/report/run_log.h"

#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "octavo/base/error.h"
#include "octavo/report/event_file.h"
#include "octavo/report/files.h"
#include "octavo/report/run_data.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

std::string metrics_path(const std::string& folder) { return folder + "/metrics.jsonl"; }
std::string samples_path(const std::string& folder) { return folder + "/samples.jsonl"; }

// A token may be part of a character only; what is not UTF-8 is written as U+FFFD.
std::string to_line(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

struct Kept {
  std::int64_t bytes = 0;
  std::int64_t last_step = 0;
  double wall_s = 0;
};

// What of a file belongs to the steps up to `step`. What follows is dropped unread: it may be damaged.
Kept kept_part(const std::string& path, std::int64_t step) {
  struct Done {};
  Kept kept;
  try {
    read_step_lines(path, [&](nlohmann::json&& line, std::int64_t bytes) {
      const auto line_step = line["step"].get<std::int64_t>();
      if (line_step > step) throw Done();
      kept = {.bytes = bytes, .last_step = line_step, .wall_s = 0};
      if (const auto wall = line.find("wall_s"); wall != line.end() && wall->is_number())
        kept.wall_s = wall->get<double>();
    });
  } catch (const Done&) {
    return kept;
  }
  return kept;
}

}  // namespace

Histogram importance_weight_histogram(std::span<const float> weights) {
  // 41 bins of width 0.1 in log2, the middle one around a weight of 1: from 1/4.14 to 4.14.
  constexpr int kBins = 41;
  constexpr double kWidth = 0.1;
  Histogram histogram;
  for (int i = 0; i <= kBins; ++i) histogram.edges.push_back(std::exp2((i - kBins / 2.0) * kWidth));
  histogram.counts.assign(kBins, 0);
  for (const float weight : weights) {
    if (!std::isfinite(weight)) continue;
    const double bin = weight > 0 ? std::floor(std::log2(weight) / kWidth + kBins / 2.0) : 0.0;
    ++histogram.counts[static_cast<std::size_t>(std::clamp(bin, 0.0, kBins - 1.0))];
  }
  return histogram;
}

RunLog RunLog::create(const std::string& folder, std::string_view recipe_yaml) {
  if (fs::exists(metrics_path(folder)))
    fail("the folder '{}' holds a run already: resume it, or name another folder", folder);
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) fail("cannot make the folder '{}': {}", folder, error.message());
  write_file(folder + "/recipe.yaml", recipe_yaml);
  RunLog log(folder, 0, 0.0);
  log.metrics_fd_ = open_to_append(metrics_path(folder), 0);
  log.samples_fd_ = open_to_append(samples_path(folder), 0);
  log.events_ = std::make_unique<EventFile>(folder, 1);
  return log;
}

RunLog RunLog::resume(const std::string& folder, std::int64_t step) {
  if (!fs::exists(metrics_path(folder)))
    fail("cannot resume in '{}': it has no metrics.jsonl, so it is not a run's folder", folder);
  const Kept metrics = kept_part(metrics_path(folder), step);
  const Kept samples = fs::exists(samples_path(folder)) ? kept_part(samples_path(folder), step) : Kept{};
  RunLog log(folder, step, metrics.wall_s);
  log.metrics_fd_ = open_to_append(metrics_path(folder), metrics.bytes);
  log.samples_fd_ = open_to_append(samples_path(folder), samples.bytes);
  log.events_ = std::make_unique<EventFile>(folder, step + 1);
  return log;
}

RunLog::RunLog(std::string folder, std::int64_t last_step, double wall_s)
    : folder_(std::move(folder)),
      last_step_(last_step),
      earlier_wall_s_(wall_s),
      start_(std::chrono::steady_clock::now()) {}

RunLog::RunLog(RunLog&& other) noexcept
    : folder_(std::move(other.folder_)),
      last_step_(other.last_step_),
      earlier_wall_s_(other.earlier_wall_s_),
      start_(other.start_),
      metrics_fd_(std::exchange(other.metrics_fd_, -1)),
      samples_fd_(std::exchange(other.samples_fd_, -1)),
      events_(std::move(other.events_)) {}

RunLog::~RunLog() {
  if (metrics_fd_ >= 0) close(metrics_fd_);
  if (samples_fd_ >= 0) close(samples_fd_);
}

void RunLog::write(const Transcript& sample) {
  assert(sample.step > last_step_);
  nlohmann::ordered_json tokens = nlohmann::ordered_json::array();
  for (const SampleToken& token : sample.tokens)
    tokens.push_back({{"text", token.text}, {"lp_gen", token.lp_gen}, {"lp_train", token.lp_train}});
  write_all(samples_fd_,
            to_line({{"step", sample.step},
                     {"id", sample.id},
                     {"prompt", sample.prompt},
                     {"completion", sample.completion},
                     {"reward", sample.reward},
                     {"answer", sample.answer},
                     {"finish_reason", sample.finish_reason},
                     {"tokens", std::move(tokens)}}),
            samples_path(folder_));
}

void RunLog::write(const StepMetrics& metrics) {
  assert(metrics.step > last_step_);
  const double wall_s =
      earlier_wall_s_ + std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  nlohmann::ordered_json line = {{"step", metrics.step}, {"wall_s", wall_s}};
  for (const auto& [key, value] : metrics.values) {
    assert(!line.contains(key));
    // Whole numbers without a fraction, as one would write them.
    if (std::abs(value) < 1e15 && value == std::trunc(value))
      line[key] = static_cast<std::int64_t>(value);
    else
      line[key] = value;
  }
  if (metrics.importance_weights)
    line["importance_weight/histogram"] = {{"edges", metrics.importance_weights->edges},
                                           {"counts", metrics.importance_weights->counts}};
  write_all(metrics_fd_, to_line(line), metrics_path(folder_));
  events_->write(metrics);
  last_step_ = metrics.step;
}

}  // namespace octavo
