#include "octavo/train/checkpoints.h"

#include <ATen/ops/zeros.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/report/files.h"

namespace octavo {
namespace fs = std::filesystem;
namespace {

constexpr const char* kPrefix = "step_";

std::optional<std::int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  std::int64_t step = 0;
  const char* begin = name.data() + std::strlen(kPrefix);
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(begin, end, step);
  if (error != std::errc() || stop != end) return std::nullopt;
  return step;
}

// A rename is on disk only when its folder is.
void flush_folder(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY);
  if (fd < 0) fail_system("cannot open {}: {}", path.string(), std::strerror(errno));
  ::fsync(fd);
  ::close(fd);
}

void write_tensors(const std::string& path, const ParameterLayout& layout,
                   const std::vector<std::pair<std::string, at::Tensor>>& buffers,
                   const std::map<std::string, std::string>& metadata) {
  std::vector<TensorDeclaration> declarations;
  for (const auto& [prefix, buffer] : buffers)
    for (const Parameter& p : layout.all()) declarations.push_back({prefix + p.name, DType::kF32, p.shape});
  SafetensorsWriter writer(path, declarations, metadata);
  for (const auto& [prefix, buffer] : buffers) {
    const at::Tensor host = buffer.cpu();
    for (const Parameter& p : layout.all())
      writer.write(prefix + p.name, host.const_data_ptr<float>() + p.offset,
                   static_cast<std::size_t>(p.elements()) * sizeof(float));
  }
  writer.finish();
}

void read_tensors(const SafetensorsFile& file, const ParameterLayout& layout, const std::string& prefix,
                  const at::Tensor& buffer) {
  at::Tensor host = at::zeros({layout.size()});
  for (const Parameter& p : layout.all()) {
    const auto view = file.find(prefix + p.name);
    if (!view || view->shape != p.shape || view->dtype != DType::kF32)
      fail("{}: '{}' is missing or has another shape: the checkpoint is of another model", file.path(),
           prefix + p.name);
    std::memcpy(host.mutable_data_ptr<float>() + p.offset, view->data,
                static_cast<std::size_t>(p.elements()) * sizeof(float));
    file.drop_pages(*view);
  }
  buffer.copy_(host);
}

// The model's folder but for its weights.
void copy_model_files(const fs::path& from, const fs::path& to) {
  for (const auto& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename();
    const bool weights = name.find(".safetensors") != std::string::npos || name.ends_with(".bin") ||
                         name.ends_with(".gguf") || name.ends_with(".pth");
    if (entry.is_regular_file() && !weights) fs::copy_file(entry.path(), to / name);
  }
}

}  // namespace

Checkpoints::Checkpoints(const CheckpointingConfig& config, std::string model_folder)
    : config_(config), model_folder_(std::move(model_folder)) {}

std::string Checkpoints::folder(std::int64_t step) const {
  return fmt::format("{}/{}{}", config_.checkpoint_dir, kPrefix, step);
}

std::vector<std::int64_t> Checkpoints::steps() const {
  std::vector<std::int64_t> steps;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(config_.checkpoint_dir, ignored))
    if (const auto step = step_of(entry.path().filename())) steps.push_back(*step);
  std::sort(steps.begin(), steps.end());
  return steps;
}

void Checkpoints::save(std::int64_t step, const Policy& policy, const AdamW& optimizer, nlohmann::json state,
                       const nlohmann::json& metrics) const {
  const fs::path target = folder(step);
  const fs::path partial = target.string() + ".partial";
  try {
    fs::remove_all(partial);
    fs::create_directories(partial / "policy");
    copy_model_files(model_folder_, partial / "policy");
    write_tensors(partial / "policy/model.safetensors", policy.layout(), {{"", policy.values()}},
                  {{"format", "pt"}});
    write_tensors(partial / "optimizer.safetensors", policy.layout(),
                  {{"exp_avg.", optimizer.first_moment()}, {"exp_avg_sq.", optimizer.second_moment()}}, {});
    state["step"] = step;
    state["optimizer_steps"] = optimizer.steps();
    state["metrics"] = metrics;
    write_file(partial / "state.json", state.dump(1));
    flush_folder(partial);
    fs::remove_all(target);
    fs::rename(partial, target);
    flush_folder(config_.checkpoint_dir);
  } catch (const fs::filesystem_error& error) {
    fail_system("the checkpoint of step {} cannot be saved: {}", step, error.what());
  }
  remove_surplus();
}

void Checkpoints::remove_surplus() const {
  if (!config_.keep_top_k) return;
  std::vector<std::int64_t> ranked = steps();
  const std::int64_t latest = ranked.back();
  // Best first; later before earlier among equals, and where the metric is missing, last.
  std::map<std::int64_t, double> score;
  if (config_.metric_name) {
    std::string key =
        *config_.metric_name;  // "val:accuracy" is val/accuracy; "train:reward/mean" is reward/mean
    if (key.starts_with("train:")) key = key.substr(6);
    std::replace(key.begin(), key.end(), ':', '/');
    for (const std::int64_t step : ranked) {
      const auto state = parse_json(read_file(folder(step) + "/state.json"), folder(step) + "/state.json");
      const auto metrics = state.find("metrics");
      const bool has = metrics != state.end() && metrics->contains(key) && (*metrics)[key].is_number();
      score[step] = has ? (config_.higher_is_better ? 1 : -1) * (*metrics)[key].get<double>() : -INFINITY;
    }
  }
  std::stable_sort(ranked.begin(), ranked.end(), [&](std::int64_t a, std::int64_t b) {
    return score[a] != score[b] ? score[a] > score[b] : a > b;
  });
  for (std::size_t i = static_cast<std::size_t>(*config_.keep_top_k); i < ranked.size(); ++i) {
    if (ranked[i] == latest) continue;
    // Renamed first: a folder that is half removed must not pass for a checkpoint.
    const fs::path gone = folder(ranked[i]) + ".partial";
    fs::remove_all(gone);
    fs::rename(folder(ranked[i]), gone);
    fs::remove_all(gone);
  }
}

nlohmann::json Checkpoints::restore(std::int64_t step, Policy& policy, AdamW& optimizer) const {
  const std::string at = folder(step);
  nlohmann::json state = parse_json(read_file(at + "/state.json"), at + "/state.json");
  read_tensors(SafetensorsFile(at + "/policy/model.safetensors"), policy.layout(), "", policy.values());
  const SafetensorsFile moments(at + "/optimizer.safetensors");
  read_tensors(moments, policy.layout(), "exp_avg.", optimizer.first_moment());
  read_tensors(moments, policy.layout(), "exp_avg_sq.", optimizer.second_moment());
  optimizer.set_steps(state.at("optimizer_steps").get<std::int64_t>());
  return state;
}

}  // namespace octavo
