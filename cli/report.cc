#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "octavo/report/page.h"

namespace octavo {

void add_report(CLI::App& app) {
  auto folder = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("report", "Write RUN/report.html from a training run's files");
  command->add_option("RUN", *folder, "A run's folder; the run may still be going on")->required();
  command->callback([folder] { fmt::print("{}\n", write_report(*folder)); });
}

}  // namespace octavo
