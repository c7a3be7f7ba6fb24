// The report: one self-contained HTML page with charts and transcripts, made from a run's files. It loads
// nothing from elsewhere and its content policy forbids it to, so a run's text can do no harm in it.
#pragma once

#include <string>
#include <vector>

#include "octavo/report/comparison.h"

namespace octavo {

// Transcripts in a page, over all its steps; more make it slow to open.
inline constexpr std::size_t kMaxSamples = 90;

// The page of one run, or of several laid over one another with their comparison.
std::string report_page(const std::vector<RunGroup>& groups);

// Writes FOLDER/report.html and returns its path. Error as read_run.
std::string write_report(const std::string& folder);

}  // namespace octavo
