#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "octavo/report/files.h"
#include "octavo/report/page.h"

namespace octavo {
namespace {

struct CompareOptions {
  std::vector<std::string> runs;
  std::string out = "compare.html";
};

void run_compare(const CompareOptions& options) {
  std::vector<std::string> warnings;
  // Every run brings transcripts of its own; together no more than in one report.
  const auto groups = group_runs(options.runs, kMaxSamples / options.runs.size(), warnings);
  for (const std::string& warning : warnings) fmt::print(stderr, "octavo: warning: {}\n", warning);
  write_file(options.out, report_page(groups));
  fmt::print("{}", to_markdown(groups, compare(groups)));
  fmt::print(stderr, "{}\n", options.out);
}

}  // namespace

void add_report(CLI::App& app) {
  auto folder = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("report", "Write RUN/report.html from a training run's files");
  command->add_option("RUN", *folder, "A run's folder; the run may still be going on")->required();
  command->callback([folder] { fmt::print("{}\n", write_report(*folder)); });
}

void add_compare(CLI::App& app) {
  auto options = std::make_shared<CompareOptions>();
  CLI::App* command = app.add_subcommand(
      "compare", "Set training runs against one another: a page, and tables in Markdown on standard output");
  command
      ->add_option("RUN", options->runs,
                   "Runs' folders, as FOLDER or NAME=FOLDER; runs of one name are seeds of one experiment "
                   "(without NAME: the folder's, less an ending like -seed3); the first is the baseline")
      ->required();
  command->add_option("--out", options->out, "The page's file")->capture_default_str();
  command->callback([options] { run_compare(*options); });
}

}  // namespace octavo
