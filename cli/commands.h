// The subcommands of `octavo`. Each adds its flags to the parser and runs when chosen.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <limits>

#include "cli/flags.h"

namespace octavo {

// Checks of a flag's text: an integer that is at least and at most so much; a number (that may be held to be
// above 0); a seed.
CLI::Validator at_least(std::int64_t least, std::int64_t most = std::numeric_limits<std::int64_t>::max());
CLI::Validator number();
CLI::Validator positive_number();
CLI::Validator seed_number();

void add_generate(CLI::App& app);
void add_score(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_quantize(CLI::App& app);
void add_inspect(CLI::App& app);
void add_bench(CLI::App& app);
void add_refit_bench(CLI::App& app);
void add_recipe(CLI::App& app);
void add_report(CLI::App& app);
void add_compare(CLI::App& app);
void add_train(CLI::App& app);

}  // namespace octavo
