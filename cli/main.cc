// octavo: FP8 rollouts for reinforcement learning of language models.
//
// Exit codes: 0 done; 2 bad usage or bad input, one line on standard error says what, where and how to mend
// it; 1 a failure of the program or the machine. A signal ends it as signals do (128 + its number to a
// shell).
#include <fmt/format.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <new>

#include "cli/commands.h"
#include "cli/interrupt.h"
#include "octavo/base/error.h"

namespace {

// What was printed is out, or it is a failure: a full disk shows only now.
int finish(int code) {
  if (std::cout.flush() && std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  fmt::print(stderr, "octavo: cannot write to standard output: {}\n", std::strerror(errno));
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  // A full disk or a closed pipe shall be an error message, not a signal.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  octavo::catch_interrupts();

  CLI::App app("FP8 rollouts for reinforcement learning of language models", "octavo");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string(OCTAVO_VERSION));
  app.get_formatter()->column_width(34);
  octavo::add_generate(app);
  octavo::add_score(app);
  octavo::add_tokenize(app);
  octavo::add_quantize(app);
  octavo::add_inspect(app);
  octavo::add_bench(app);
  octavo::add_refit_bench(app);
  octavo::add_recipe(app);
  octavo::add_report(app);
  octavo::add_compare(app);
  octavo::add_train(app);

  const auto chosen = [&](const CLI::App* command) { return command->get_name() == argv[1]; };
  if (argc > 1 && argv[1][0] != '-' && app.get_subcommands(chosen).empty()) {
    fmt::print(stderr, "octavo: there is no command '{}' (see 'octavo --help')\n", argv[1]);
    return 2;
  }
  try {
    app.parse(argc, argv);
    return finish(0);
  } catch (const CLI::Success& success) {  // --help and --version
    return finish(app.exit(success));
  } catch (const CLI::ParseError& error) {
    const auto commands = app.get_subcommands();
    fmt::print(stderr, "octavo: {} (see 'octavo {}--help')\n", error.what(),
               commands.empty() ? "" : commands.front()->get_name() + " ");
    return 2;
  } catch (const octavo::Interrupted& interrupted) {
    octavo::end_by(interrupted);
  } catch (const octavo::Error& error) {
    fmt::print(stderr, "octavo: {}\n", error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "octavo: out of memory; give it less to do at once or a machine with more\n");
    return 1;
  } catch (const std::exception& error) {
    fmt::print(stderr, "octavo: {}\n", error.what());
    return 1;
  }
}
