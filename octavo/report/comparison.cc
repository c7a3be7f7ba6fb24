#include "octavo/report/comparison.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <limits>
#include <regex>
#include <set>
#include <utility>

#include "octavo/base/error.h"

namespace octavo {
namespace {

constexpr std::array kComparedKeys = {"reward/mean",
                                      "accuracy",
                                      "val/accuracy",
                                      "response_length/mean",
                                      "token_mult_prob_error",
                                      "gen_kl_error",
                                      "js_divergence_error",
                                      "importance_weight/out_of_band_share",
                                      "entropy",
                                      "tokens_per_s",
                                      "time/step_s",
                                      "time/refit_s"};

std::string name_of_folder(const std::string& folder) {
  const std::filesystem::path path = std::filesystem::absolute(folder).lexically_normal();
  const std::string name = (path.has_filename() ? path : path.parent_path()).filename().string();
  static const std::regex kSeed(R"([-_.]?s(eed)?[-_=]?[0-9]+$)");
  const std::string stem = std::regex_replace(name, kSeed, "");
  return stem.empty() ? name : stem;
}

void flatten(const YAML::Node& node, const std::string& path, std::map<std::string, std::string>& flat) {
  if (!node.IsMap()) {
    YAML::Emitter emitter;
    emitter.SetSeqFormat(YAML::Flow);
    emitter << node;
    flat[path] = emitter.c_str();
    return;
  }
  for (const auto& entry : node)
    flatten(entry.second, path + (path.empty() ? "" : ".") + entry.first.as<std::string>(), flat);
}

// Where a run lies and which seed it had do not make it another experiment.
bool tells_runs_apart(const std::string& key) {
  return key.ends_with("seed") || key == "logger.log_dir" || key == "checkpointing.checkpoint_dir";
}

// The recipe's keys with each run's value, of those keys that are not the same for all.
std::vector<std::pair<std::string, std::vector<std::string>>> recipe_differences(
    const std::vector<const RunData*>& runs) {
  std::map<std::string, std::vector<std::string>> values;
  for (std::size_t i = 0; i < runs.size(); ++i)
    for (const auto& [key, value] : flat_yaml(runs[i]->recipe, runs[i]->folder + "/recipe.yaml")) {
      if (tells_runs_apart(key)) continue;
      auto& row = values[key];
      row.resize(runs.size());
      row[i] = value;
    }
  std::vector<std::pair<std::string, std::vector<std::string>>> differences;
  for (auto& entry : values) {
    const std::vector<std::string>& row = entry.second;
    if (!std::all_of(row.begin(), row.end(), [&](const std::string& value) { return value == row[0]; }))
      differences.emplace_back(entry.first, std::move(entry.second));
  }
  return differences;
}

std::int64_t step_of(const nlohmann::json& line) { return line["step"].get<std::int64_t>(); }

std::optional<double> mean_over(const RunData& run, const std::string& key, std::int64_t first,
                                std::int64_t last) {
  double sum = 0;
  int count = 0;
  for (const auto& line : run.metrics) {
    const auto value = line.find(key);
    if (step_of(line) < first || step_of(line) > last || value == line.end() || !value->is_number()) continue;
    sum += value->get<double>();
    ++count;
  }
  if (count == 0) return std::nullopt;
  return sum / count;
}

std::optional<Spread> spread_over(const RunGroup& group, const std::string& key, std::int64_t first,
                                  std::int64_t last) {
  std::vector<double> means;
  for (const RunData& run : group.runs)
    if (const auto mean = mean_over(run, key, first, last)) means.push_back(*mean);
  if (means.empty()) return std::nullopt;
  const auto n = static_cast<double>(means.size());
  Spread spread{.runs = static_cast<std::int64_t>(means.size())};
  for (const double mean : means) spread.mean += mean / n;
  if (means.size() < 2) return spread;
  double squares = 0;
  for (const double mean : means) squares += (mean - spread.mean) * (mean - spread.mean);
  spread.std = std::sqrt(squares / (n - 1));
  return spread;
}

Difference difference_of(const Spread& group, const Spread& base) {
  Difference difference{.mean = group.mean - base.mean, .error = std::nullopt};
  if (group.std && base.std)
    difference.error = std::sqrt(*group.std * *group.std / static_cast<double>(group.runs) +
                                 *base.std * *base.std / static_cast<double>(base.runs));
  return difference;
}

// Text from a recipe or a folder's name, within a Markdown table's cell.
std::string cell(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '|' || c == '\\' || c == '<' || c == '`') escaped += '\\';
    escaped += c == '\n' ? ' ' : c;
  }
  return escaped;
}

}  // namespace

std::map<std::string, std::string> flat_yaml(const std::string& text, const std::string& where) {
  std::map<std::string, std::string> flat;
  try {
    const YAML::Node root = YAML::Load(text);
    if (root.IsMap()) flatten(root, "", flat);
  } catch (const YAML::Exception& error) {
    fail("{}:{}: not valid YAML: {}", where, error.mark.line + 1, error.msg);
  }
  return flat;
}

std::vector<RunGroup> group_runs(const std::vector<std::string>& arguments, std::size_t max_samples,
                                 std::vector<std::string>& warnings) {
  std::vector<RunGroup> groups;
  std::set<std::filesystem::path> seen;
  for (const std::string& argument : arguments) {
    const std::size_t equals = argument.find('=');
    const bool named = equals != std::string::npos && !std::filesystem::exists(argument);
    const std::string folder = named ? argument.substr(equals + 1) : argument;
    const std::string name = named ? argument.substr(0, equals) : name_of_folder(folder);
    RunData run = read_run(folder, max_samples);
    if (!seen.insert(std::filesystem::canonical(folder)).second)
      fail("the run '{}' is given twice; each counts as a seed of its own, so name it once", folder);
    auto group =
        std::find_if(groups.begin(), groups.end(), [&](const RunGroup& g) { return g.name == name; });
    if (group == groups.end()) group = groups.insert(group, RunGroup{.name = name, .runs = {}});
    group->runs.push_back(std::move(run));
  }
  for (const RunGroup& group : groups) {
    std::vector<const RunData*> runs;
    for (const RunData& run : group.runs) runs.push_back(&run);
    for (const auto& [key, values] : recipe_differences(runs))
      warnings.push_back(
          fmt::format("the runs of '{}' differ in {}, not in their seed alone", group.name, key));
  }
  return groups;
}

Comparison compare(const std::vector<RunGroup>& groups) {
  Comparison comparison;
  std::int64_t begin = 0;
  comparison.last_step = std::numeric_limits<std::int64_t>::max();
  for (const RunGroup& group : groups)
    for (const RunData& run : group.runs) {
      begin = std::max(begin, step_of(run.metrics.front()));
      comparison.last_step = std::min(comparison.last_step, step_of(run.metrics.back()));
      comparison.longest = std::max(comparison.longest, step_of(run.metrics.back()));
    }
  if (begin > comparison.last_step)
    fail("the runs have no step in common: one ends at step {}, another begins at step {}",
         comparison.last_step, begin);
  const std::int64_t window = std::max<std::int64_t>(1, (comparison.last_step - begin + 1) / 10);
  comparison.first_step = comparison.last_step - window + 1;

  for (const char* key : kComparedKeys) {
    ComparedMetric metric{.key = key, .spreads = {}, .differences = {}};
    for (const RunGroup& group : groups) {
      metric.spreads.push_back(spread_over(group, key, comparison.first_step, comparison.last_step));
      const auto& base = metric.spreads.front();
      const auto& own = metric.spreads.back();
      if (metric.spreads.size() > 1 && base && own)
        metric.differences.emplace_back(difference_of(*own, *base));
      else
        metric.differences.emplace_back(std::nullopt);
    }
    if (std::any_of(metric.spreads.begin(), metric.spreads.end(),
                    [](const auto& s) { return s.has_value(); }))
      comparison.metrics.push_back(std::move(metric));
  }
  std::vector<const RunData*> firsts;
  firsts.reserve(groups.size());
  for (const RunGroup& group : groups) firsts.push_back(&group.runs.front());
  comparison.recipe_differences = recipe_differences(firsts);
  return comparison;
}

std::string to_markdown(const std::vector<RunGroup>& groups, const Comparison& comparison) {
  std::string text =
      fmt::format("Means over steps {} to {}; ± is the standard deviation over a group's runs.\n\n",
                  comparison.first_step, comparison.last_step);
  std::string rule = "|---|---|";
  text += "| group | runs |";
  for (const ComparedMetric& metric : comparison.metrics) {
    text += fmt::format(" {} |", metric.key);
    rule += "---|";
  }
  text += "\n" + rule + "\n";
  for (std::size_t g = 0; g < groups.size(); ++g) {
    text += fmt::format("| {} | {} |", cell(groups[g].name), groups[g].runs.size());
    for (const ComparedMetric& metric : comparison.metrics) {
      const auto& spread = metric.spreads[g];
      text += !spread       ? " – |"
              : spread->std ? fmt::format(" {:.5g} ± {:.2g} |", spread->mean, *spread->std)
                            : fmt::format(" {:.5g} |", spread->mean);
    }
    text += "\n";
  }
  if (groups.size() < 2) return text;
  text += fmt::format("\nDifference to {}; ± is its standard error.\n\n| group | |", cell(groups[0].name));
  for (const ComparedMetric& metric : comparison.metrics) text += fmt::format(" {} |", metric.key);
  text += "\n" + rule + "\n";
  for (std::size_t g = 1; g < groups.size(); ++g) {
    text += fmt::format("| {} | |", cell(groups[g].name));
    for (const ComparedMetric& metric : comparison.metrics) {
      const auto& difference = metric.differences[g];
      text += !difference         ? " – |"
              : difference->error ? fmt::format(" {:+.3g} ± {:.2g} |", difference->mean, *difference->error)
                                  : fmt::format(" {:+.3g} |", difference->mean);
    }
    text += "\n";
  }
  return text;
}

}  // namespace octavo
