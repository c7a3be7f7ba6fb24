#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <optional>

#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/jsonl.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "octavo/base/error.h"

namespace octavo {
namespace {

struct Options {
  ModelFlags model;
  EngineFlags engine;
  std::string input;
  std::string out;
};

void run(const Options& options) {
  std::vector<PromptLine> lines;
  std::int64_t total = 0;
  for (const Line& line : read_lines(options.input)) {
    lines.push_back(parse_token_line(line.text, line.where));
    total += static_cast<std::int64_t>(lines.back().prompt_ids.size());
  }
  refuse_same_ids(lines);
  refuse_same_file(options.out, options.input, "--input");
  LineWriter writer(options.out);
  Session session(options.model, options.engine.options(options.model.device), false);
  for (const PromptLine& line : lines)  // all of them before any is computed
    at_place(line.where,
             [&] { session.engine->limits().check({.prompt_ids = line.prompt_ids}, /*scoring=*/true); });
  std::optional<ProgressBar> progress("scoring");
  std::int64_t done = 0;
  double sum = 0;
  std::int64_t scored = 0;
  // As many sequences at a time as the engine runs together.
  const auto batch = static_cast<std::size_t>(options.engine.options(options.model.device).max_sequences);
  for (std::size_t begin = 0; begin < lines.size(); begin += batch) {
    const std::size_t end = std::min(begin + batch, lines.size());
    std::vector<std::vector<std::int32_t>> sequences;
    for (std::size_t i = begin; i < end; ++i) sequences.push_back(lines[i].prompt_ids);
    const auto logprobs = session.engine->score(sequences, throw_if_interrupted);
    for (std::size_t i = begin; i < end; ++i) {
      auto values = nlohmann::ordered_json::array({nullptr});  // the first token follows nothing
      for (std::size_t t = 1; t < logprobs[i - begin].size(); ++t) {
        const float value = logprobs[i - begin][t];
        if (std::isnan(value))
          fail(
              "{}: token {} has no log-probability: the model computes values that are not finite (octavo "
              "inspect --check-values looks for them in its weights)",
              lines[i].where, t);
        values.push_back(value);
        sum += value;
        ++scored;
      }
      writer.write(dump_line({{"id", lines[i].id}, {"logprobs", values}}));
      done += static_cast<std::int64_t>(lines[i].prompt_ids.size());
    }
    progress->update(done, total);
  }
  progress.reset();
  writer.finish();
  if (scored > 0)
    fmt::print(stderr, "{} tokens scored, mean log-probability {:.6f}, perplexity {:.4f}\n", scored,
               sum / static_cast<double>(scored), std::exp(-sum / static_cast<double>(scored)));
}

}  // namespace

void add_score(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("score", "Log-probabilities of given tokens (teacher-forced)");
  command->footer(
      "Input lines: {\"id\", \"token_ids\"}. Output lines: {\"id\", \"logprobs\"}, entry i being token i's "
      "given those "
      "before it;\nthe first is null.");
  options->model.add_to(*command);
  options->engine.add_to(*command);
  command->add_option("--input", options->input, "Tokens as JSON lines (-: standard input)")
      ->required()
      ->type_name("FILE");
  command->add_option("--out", options->out, "Write here instead of standard output")->type_name("FILE");
  command->callback([options] { run(*options); });
}

}  // namespace octavo
