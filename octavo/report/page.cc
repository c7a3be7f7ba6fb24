#include "octavo/report/page.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "octavo/report/files.h"
#include "octavo/report/page_parts.h"

namespace octavo {
namespace {

using json = nlohmann::json;

// JSON within a <script> element: no "<", so that no text can close the element or open a comment.
std::string script_json(const json& value) {
  const std::string plain = value.dump(-1, ' ', false, json::error_handler_t::replace);
  std::string safe;
  safe.reserve(plain.size());
  for (const char c : plain) {
    if (c == '<')
      safe += "\\u003c";
    else
      safe += c;
  }
  return safe;
}

std::string html_text(std::string_view text) {
  std::string safe;
  for (const char c : text) {
    switch (c) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '"':
        safe += "&quot;";
        break;
      default:
        safe += c;
    }
  }
  return safe;
}

json spread_json(const std::optional<Spread>& spread) {
  if (!spread) return nullptr;
  return {{"runs", spread->runs}, {"mean", spread->mean}, {"std", spread->std ? json(*spread->std) : json()}};
}

json difference_json(const std::optional<Difference>& difference) {
  if (!difference) return nullptr;
  return {{"mean", difference->mean}, {"error", difference->error ? json(*difference->error) : json()}};
}

json comparison_json(const Comparison& comparison) {
  json metrics = json::array();
  for (const ComparedMetric& metric : comparison.metrics) {
    json spreads = json::array();
    json differences = json::array();
    for (const auto& spread : metric.spreads) spreads.push_back(spread_json(spread));
    for (const auto& difference : metric.differences) differences.push_back(difference_json(difference));
    metrics.push_back({{"key", metric.key}, {"spreads", spreads}, {"differences", differences}});
  }
  json recipe = json::array();
  for (const auto& [key, values] : comparison.recipe_differences)
    recipe.push_back({{"key", key}, {"values", values}});
  return {{"first_step", comparison.first_step},
          {"last_step", comparison.last_step},
          {"longest", comparison.longest},
          {"metrics", std::move(metrics)},
          {"recipe", std::move(recipe)}};
}

std::string folder_name(const std::string& folder) {
  const auto path = std::filesystem::absolute(folder).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

// Puts `text` where `mark` stands, once.
void fill(std::string& page, std::string_view mark, std::string_view text) {
  page.replace(page.find(mark), mark.size(), text);
}

}  // namespace

std::string report_page(const std::vector<RunGroup>& groups) {
  json data = {{"groups", json::array()}};
  std::size_t runs = 0;
  for (const RunGroup& group : groups) {
    json members = json::array();
    for (const RunData& run : group.runs) {
      members.push_back({{"name", folder_name(run.folder)},
                         {"recipe", run.recipe},
                         {"metrics", run.metrics},
                         {"samples", run.samples}});
      ++runs;
    }
    data["groups"].push_back({{"name", group.name}, {"runs", std::move(members)}});
  }
  if (runs > 1) data["comparison"] = comparison_json(compare(groups));
  const std::string title =
      runs == 1 ? folder_name(groups[0].runs[0].folder) : fmt::format("{} runs compared", runs);

  std::string page(kPageHtml);
  fill(page, "@TITLE@", html_text(title));
  fill(page, "@HEADING@", html_text(title));
  fill(page, "@STYLE@", kPageCss);
  fill(page, "@SCRIPT@", kPageJs);
  fill(page, "@DATA@", script_json(data));  // last: what is data is not searched for marks
  return page;
}

std::string write_report(const std::string& folder) {
  RunData run = read_run(folder, kMaxSamples);
  std::string name = folder_name(folder);
  std::vector<RunGroup> groups(1);
  groups[0].name = std::move(name);
  groups[0].runs.push_back(std::move(run));
  std::string path = folder + "/report.html";
  write_file(path, report_page(groups));
  return path;
}

}  // namespace octavo
