#include "octavo/report/run_data.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"

namespace octavo {
namespace {

// `count` of `values`, evenly apart, first and last among them.
std::set<std::int64_t> spread(const std::vector<std::int64_t>& values, std::size_t count) {
  if (values.size() <= count) return {values.begin(), values.end()};
  if (count == 1) return {values.back()};
  std::set<std::int64_t> chosen;
  for (std::size_t i = 0; i < count; ++i) chosen.insert(values[i * (values.size() - 1) / (count - 1)]);
  return chosen;
}

std::vector<nlohmann::json> read_samples(const std::string& path, std::size_t max_samples) {
  // Twice through the file, as all transcripts of a long run need not fit into memory.
  std::map<std::int64_t, std::size_t> per_step;
  read_step_lines(path,
                  [&](nlohmann::json&& line, std::int64_t) { ++per_step[line["step"].get<std::int64_t>()]; });
  if (per_step.empty() || max_samples == 0) return {};
  // Several of a step show how a group differs, several steps how the policy moves: half a dozen of each
  // step.
  const std::size_t each = std::min<std::size_t>(6, max_samples);
  std::vector<std::int64_t> steps;
  steps.reserve(per_step.size());
  for (const auto& [step, samples] : per_step) steps.push_back(step);
  const std::set<std::int64_t> chosen = spread(steps, max_samples / each);
  std::map<std::int64_t, std::size_t> taken;
  std::vector<nlohmann::json> samples;
  read_step_lines(path, [&](nlohmann::json&& line, std::int64_t) {
    const auto step = line["step"].get<std::int64_t>();
    if (chosen.contains(step) && taken[step]++ < each) samples.push_back(std::move(line));
  });
  return samples;
}

}  // namespace

void read_step_lines(const std::string& path,
                     const std::function<void(nlohmann::json&& object, std::int64_t bytes)>& line) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail("cannot read '{}'; is its folder that of a run?", path);
  std::string text;
  std::int64_t bytes = 0;
  for (std::int64_t number = 1; std::getline(stream, text) && !stream.eof(); ++number) {
    bytes += static_cast<std::int64_t>(text.size()) + 1;
    const std::string where = fmt::format("{}:{}", path, number);
    nlohmann::json object = parse_json(text, where);
    if (!object.is_object() || !object.contains("step") || !object["step"].is_number_integer())
      fail("{}: not an object with an integer 'step'; the file is damaged here", where);
    line(std::move(object), bytes);
  }
}

RunData read_run(const std::string& folder, std::size_t max_samples) {
  const std::filesystem::path path(folder);
  if (!std::filesystem::exists(path / "metrics.jsonl"))
    fail("'{}' is not a run's folder: it has no metrics.jsonl", folder);
  RunData run;
  run.folder = folder;
  run.recipe = read_file((path / "recipe.yaml").string());
  read_step_lines((path / "metrics.jsonl").string(),
                  [&](nlohmann::json&& line, std::int64_t) { run.metrics.push_back(std::move(line)); });
  if (run.metrics.empty()) fail("the run '{}' has no finished step yet", folder);
  if (std::filesystem::exists(path / "samples.jsonl"))
    run.samples = read_samples((path / "samples.jsonl").string(), max_samples);
  return run;
}

}  // namespace octavo
