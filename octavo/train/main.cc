// octavo-train: what `octavo train` runs. A program of its own, so that the other commands do not load
// libtorch.
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <exception>
#include <limits>

#include "octavo/base/error.h"
#include "octavo/train/trainer.h"

namespace {

std::atomic<bool> stop_wanted{false};
static_assert(std::atomic<bool>::is_always_lock_free);  // a signal handler may set it

// The first signal ends the run after the step, a second one at once.
void on_signal(int signal) {
  if (stop_wanted.exchange(true)) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}

int run(int argc, char** argv) {
  CLI::App app("Train a policy by GRPO with Octavo's rollouts", "octavo train");
  std::string file;
  std::vector<std::string> overrides;
  bool resume = false;
  app.add_option("recipe", file, "Recipe (YAML)")->required()->type_name("FILE");
  app.add_option("overrides", overrides, "key.path=value; ~key.path removes a key")->type_name("KEY=VALUE");
  app.add_flag("--resume", resume, "Go on from the latest checkpoint, or begin where there is none");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "octavo train: {} (see 'octavo train --help')\n", error.what());
    return 2;
  }
  std::vector<std::string> warnings;
  const octavo::Recipe recipe = octavo::load_recipe(file, overrides, warnings);
  for (const std::string& warning : warnings) fmt::print(stderr, "octavo: {}\n", warning);
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  if (std::signal(SIGHUP, on_signal) == SIG_IGN) std::signal(SIGHUP, SIG_IGN);  // nohup's wish
  octavo::Trainer(recipe, resume).run(stop_wanted);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  // A full disk or a closed pipe shall be an error message, not a signal.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  // libtorch allocates a tensor an operation. Freed memory is kept for the next one, rather than unmapped and
  // then mapped and zeroed again by the kernel.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  try {
    return run(argc, argv);
  } catch (const octavo::Error& error) {
    fmt::print(stderr, "octavo: {}\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    fmt::print(stderr, "octavo: {}\n", error.what());
    return 1;
  }
}
