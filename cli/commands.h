// The subcommands of `octavo`. Each adds its flags to the parser and runs when chosen.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "octavo/model/weights.h"

namespace octavo {

// Checks of a flag's text: an integer that is at least so much; a number (that may be held to be above 0); a
// seed.
CLI::Validator at_least(std::int64_t least);
CLI::Validator number();
CLI::Validator positive_number();
CLI::Validator seed_number();

// Flags that every command with a loaded model shares.
struct ModelFlags {
  std::string folder;
  std::string shape;  // instead of a folder: random weights of this shape
  std::string precision = "fp8";
  std::string device = "cpu";
  bool use_deep_gemm = true;
  std::int64_t bf16_first = 0;
  std::int64_t bf16_last = 0;
  std::vector<std::string> ignored;
  bool pow2_weights = false;
  bool pow2_activations = false;
  int threads = 0;

  void add_to(CLI::App& app);
  WeightOptions weight_options() const;
};

// Flags that say how weights become FP8, for commands that do not load a model to run it too.
void add_quantization_flags(CLI::App& app, ModelFlags& flags);

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
