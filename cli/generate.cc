#include <fmt/format.h>

#include <cassert>
#include <memory>

#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/jsonl.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "octavo/base/error.h"
#include "octavo/text/unicode.h"

namespace octavo {
namespace {

struct Options {
  ModelFlags model;
  EngineFlags engine;
  std::vector<std::string> prompts;
  std::string prompts_file;
  std::string out;
  bool json = false;
  bool add_special_tokens = true;
  SamplingParams sampling;
  std::uint64_t seed = 0;
  bool has_seed = false;
};

std::vector<PromptLine> collect_prompts(const Options& options) {
  if (options.prompts.empty() == options.prompts_file.empty())
    fail("give either --prompt TEXT or --prompts FILE");
  std::vector<PromptLine> lines;
  if (!options.prompts_file.empty()) {
    for (const Line& line : read_lines(options.prompts_file))
      lines.push_back(parse_prompt_line(line.text, line.where));
    refuse_same_ids(lines);
    return lines;
  }
  for (const std::string& prompt : options.prompts)
    lines.push_back(
        {.id = lines.size(),
         .prompt = prompt,
         .where = options.prompts.size() == 1 ? "--prompt" : fmt::format("--prompt {}", lines.size() + 1)});
  return lines;
}

nlohmann::ordered_json output_line(const PromptLine& prompt, const std::vector<std::int32_t>& prompt_ids,
                                   const Output& output) {
  // No refit happens while this command runs, so one version stands for every token.
  const std::uint64_t version = output.weight_versions.empty() ? 0 : output.weight_versions.front();
  nlohmann::ordered_json line = {{"id", prompt.id},
                                 {"index", output.index},
                                 {"prompt_ids", prompt_ids},
                                 {"token_ids", output.token_ids},
                                 {"logprobs", output.logprobs},
                                 {"text", output.text},
                                 {"finish_reason", name_of(output.finish_reason)},
                                 {"weight_version", version}};
  if (output.finish_reason == FinishReason::kError) line["error"] = output.finish_message;
  return line;
}

void run(const Options& options) {
  const std::vector<PromptLine> prompts = collect_prompts(options);
  options.sampling.validate();
  bool needs_tokenizer = !options.sampling.stop.empty() || !options.sampling.bad_words.empty();
  for (const PromptLine& prompt : prompts) needs_tokenizer = needs_tokenizer || !prompt.has_ids;
  if (!options.out.empty() && options.json)
    fail("--json writes to standard output and --out to a file; give one of them");
  for (const std::string& text : options.sampling.stop) require_utf8(text, "--stop");
  for (const std::string& text : options.sampling.bad_words) require_utf8(text, "--bad-word");
  refuse_same_file(options.out, options.prompts_file, "--prompts");
  LineWriter writer(options.out);  // before the model, so that a path that cannot be written fails at once
  Session session(options.model, options.engine.options(options.model.device), needs_tokenizer);
  session.engine->limits().check_sampling(options.sampling);

  std::vector<Request> requests;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    Request request;
    request.sampling = options.sampling;
    if (options.has_seed) request.sampling.seed = options.seed + i;
    at_place(prompts[i].where, [&] {
      request.prompt_ids = prompts[i].has_ids
                               ? prompts[i].prompt_ids
                               : session.tokenizer->encode(prompts[i].prompt, options.add_special_tokens);
      session.engine->limits().check(request, /*scoring=*/false);
    });
    requests.push_back(std::move(request));
  }

  const auto total =
      static_cast<std::int64_t>(requests.size()) * options.sampling.n * options.sampling.max_tokens;
  std::vector<Output> outputs;
  {
    ProgressBar progress("generating");
    std::int64_t tokens = 0;
    outputs = session.engine->generate(
        requests,
        [&](const Event& event) {
          tokens += event.token_id ? 1 : 0;
          progress.update(tokens, total, fmt::format("{} tokens", tokens));
        },
        throw_if_interrupted);
  }

  const bool lines = options.json || !options.out.empty() || !options.prompts_file.empty();
  bool failed = false;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const std::size_t owner = i / static_cast<std::size_t>(options.sampling.n);
    failed = failed || outputs[i].finish_reason == FinishReason::kError;
    if (lines) {
      writer.write(dump_line(output_line(prompts[owner], requests[owner].prompt_ids, outputs[i])));
    } else {
      if (outputs.size() > 1)
        writer.write(
            fmt::format("{}--- {} (sample {})", i == 0 ? "" : "\n", prompts[owner].prompt, outputs[i].index));
      writer.write(outputs[i].text);
    }
  }
  writer.finish();
  if (failed) fail_system("some sequences ended in an error; see their finish_reason");
}

}  // namespace

void add_generate(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("generate", "Generate text from prompts");
  command->footer(
      "Input lines: {\"id\", \"prompt\"} or {\"id\", \"prompt_ids\"}. Output lines: {\"id\", \"index\", "
      "\"prompt_ids\", "
      "\"token_ids\",\n\"logprobs\", \"text\", \"finish_reason\", \"weight_version\"}, in the order of the "
      "input. With "
      "--prompt and neither --out nor\n--json the text alone is printed. A log-probability is that of the "
      "token under the "
      "distribution it was sampled\nfrom (after temperature and filters), unless --raw-logprobs.");
  options->model.add_to(*command);
  options->engine.add_to(*command);
  SamplingParams& sampling = options->sampling;
  sampling.max_tokens = 128;
  command->add_option("--prompt", options->prompts, "Prompt text; may be repeated")->type_name("TEXT");
  command->add_option("--prompts", options->prompts_file, "Prompts as JSON lines (-: standard input)")
      ->type_name("FILE");
  command->add_option("--out", options->out, "Write JSON lines here")->type_name("FILE");
  command->add_flag("--json", options->json, "Write JSON lines to standard output");
  command->add_flag("!--no-special-tokens", options->add_special_tokens,
                    "Do not add BOS and its like to text prompts");
  command->add_option("--temperature", sampling.temperature, "0 is greedy")
      ->check(number())
      ->capture_default_str();
  command->add_option("--top-p", sampling.top_p, "Keep the likeliest tokens that sum up to P")
      ->check(number())
      ->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "Keep the K likeliest tokens (0: all)")
      ->check(at_least(0))
      ->capture_default_str();
  command->add_option("--min-p", sampling.min_p, "Keep tokens at least P times as likely as the likeliest")
      ->check(number())
      ->capture_default_str();
  command
      ->add_option("--repetition-penalty", sampling.repetition_penalty,
                   "Above 1: tokens seen before become less likely")
      ->check(number())
      ->capture_default_str();
  command->add_option("--max-tokens", sampling.max_tokens, "Tokens to generate at most")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_option("--n", sampling.n, "Samples for each prompt")
      ->check(at_least(1))
      ->capture_default_str();
  command
      ->add_option_function<std::uint64_t>(
          "--seed",
          [options](std::uint64_t seed) {
            options->seed = seed;
            options->has_seed = true;
          },
          "Prompt i is sampled with seed SEED + i (default: drawn)")
      ->check(seed_number())
      ->type_name("SEED");
  command->add_option("--stop", sampling.stop, "Stop before this text; may be repeated")->type_name("TEXT");
  command->add_option("--stop-token-id", sampling.stop_token_ids, "Stop at this token; may be repeated");
  command->add_option("--bad-word", sampling.bad_words, "Never generate this; may be repeated")
      ->type_name("TEXT");
  command->add_flag("--ignore-eos", sampling.ignore_eos, "Go on past the end-of-sequence token");
  command->add_flag("--raw-logprobs", sampling.raw_logprobs, "Log-probabilities of the untouched logits");
  command->callback([options] { run(*options); });
}

}  // namespace octavo
