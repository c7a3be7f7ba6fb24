// A run's folder, read back (run_log.h describes it).
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

// Calls `line(object, bytes)` for each line of a metrics or samples file; `bytes` counts from the file's
// start to the line's end. A last line without its newline was cut by a kill and is left out. Error, with
// file and line, for any other line that is not an object with an integer `step`, and for a file that cannot
// be read.
void read_step_lines(const std::string& path,
                     const std::function<void(nlohmann::json&& object, std::int64_t bytes)>& line);

struct RunData {
  std::string folder;
  std::string recipe;                   // YAML
  std::vector<nlohmann::json> metrics;  // in the order of steps
  std::vector<nlohmann::json> samples;
};

// `max_samples`: at most so many transcripts, an equal share of each of some steps, first and last among
// them. Error if the folder is not a run's or has no step yet.
RunData read_run(const std::string& folder, std::size_t max_samples);

}  // namespace octavo
