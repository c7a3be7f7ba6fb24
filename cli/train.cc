#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>

#include "cli/commands.h"
#include "octavo/base/error.h"

namespace octavo {
namespace {

// The trainer is a program of its own, beside this one, built where libtorch is.
[[noreturn]] void run(const std::vector<std::string>& arguments) {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "octavo-train";
  std::vector<char*> argv = {const_cast<char*>(program.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  // OpenMP's threads would spin between libtorch's operations and take the cores from the engine's.
  setenv("OMP_WAIT_POLICY", "passive", /*overwrite=*/0);
  execv(program.c_str(), argv.data());
  if (errno == ENOENT)
    fail("the trainer is not built: it needs libtorch, which scripts/setup.sh brings; then run make build");
  fail_system("cannot run {}: {}", program, std::strerror(errno));
}

}  // namespace

void add_train(CLI::App& app) {
  CLI::App* command = app.add_subcommand("train", "Train a policy by GRPO: RECIPE [key=value...] [--resume]");
  command->prefix_command();
  command->set_help_flag();  // the trainer's own
  command->callback([command] { run(command->remaining()); });
}

}  // namespace octavo
