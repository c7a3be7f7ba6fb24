// Runs set against one another: those that differ by their seed alone form a group, and groups are compared.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "octavo/report/run_data.h"

namespace octavo {

struct RunGroup {
  std::string name;
  std::vector<RunData> runs;
};

// `arguments`: run folders, each as FOLDER or NAME=FOLDER. Runs of one name are a group; without NAME it is
// the folder's own, less an ending such as "-seed3" or "_s3". Groups keep the order in which they were first
// named. Error if a folder is given twice or is not a run's. `warnings` gets a line for each recipe key,
// other than seeds and folders, in which the runs of a group differ.
std::vector<RunGroup> group_runs(const std::vector<std::string>& arguments, std::size_t max_samples,
                                 std::vector<std::string>& warnings);

// Over the runs of a group; a run counts by its mean over the compared steps. std: of a sample (n - 1), none
// for a single run.
struct Spread {
  std::int64_t runs = 0;
  double mean = 0;
  std::optional<double> std;
};

// A group's mean less that of the first group, and the standard error sqrt(s1^2/n1 + s2^2/n2) of that
// difference, none where a group is a single run.
struct Difference {
  double mean = 0;
  std::optional<double> error;
};

struct ComparedMetric {
  std::string key;
  std::vector<std::optional<Spread>> spreads;          // one a group; none if no run has the metric
  std::vector<std::optional<Difference>> differences;  // likewise; none for the first group
};

struct Comparison {
  // The last tenth (at least one) of the steps that all runs have reached.
  std::int64_t first_step = 0;
  std::int64_t last_step = 0;
  std::int64_t longest = 0;  // the last step of the run that went furthest
  std::vector<ComparedMetric> metrics;
  // Recipe keys, with their dots, in which the groups' first runs differ, and each group's value ("" for
  // none).
  std::vector<std::pair<std::string, std::vector<std::string>>> recipe_differences;
};

Comparison compare(const std::vector<RunGroup>& groups);

// The comparison as Markdown tables, groups as rows.
std::string to_markdown(const std::vector<RunGroup>& groups, const Comparison& comparison);

// The keys of a YAML text, joined by dots, and their values; a list is one value. Error if it is not YAML.
std::map<std::string, std::string> flat_yaml(const std::string& text, const std::string& where);

}  // namespace octavo
