#include <algorithm>
#include <filesystem>
#include <memory>

#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/jsonl.h"
#include "octavo/base/error.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

struct Options {
  std::string folder;
  std::string input = "-";
  std::string out;
  bool decode = false;
  bool add_special_tokens = false;
  bool skip_special_tokens = false;
};

// Ids below this may stand in a line: the tokenizer's, or the model's where its vocabulary is padded.
std::int64_t vocabulary(const std::string& folder, const Tokenizer& tokenizer) {
  const bool has_model = std::filesystem::exists(folder + "/config.json");
  return std::max<std::int64_t>(tokenizer.vocab_size(), has_model ? load_model_spec(folder).vocab_size : 0);
}

void run(const Options& options) {
  const Tokenizer tokenizer = Tokenizer::from_file(options.folder + "/tokenizer.json");
  const std::int64_t end = options.decode ? vocabulary(options.folder, tokenizer) : 0;
  refuse_same_file(options.out, options.input, "--input");
  LineWriter writer(options.out);
  for (const Line& line : read_lines(options.input, BlankLines::kRefuse)) {
    throw_if_interrupted();
    if (options.decode) {
      const auto ids = parse_ids_line(line.text, line.where);
      for (const std::int32_t id : ids)
        if (id >= end)
          fail("{}: token {} is outside the vocabulary of {} (ids 0 to {})", line.where, id, end, end - 1);
      writer.write(dump_line(tokenizer.decode(ids, options.skip_special_tokens)));
    } else {
      const std::string text = parse_text_line(line.text, line.where);
      writer.write(dump_line(tokenizer.encode(text, options.add_special_tokens)));
    }
  }
  writer.finish();
}

}  // namespace

void add_tokenize(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("tokenize", "Turn text into token ids, or back");
  command->footer(
      "Reads one JSON string a line and writes one JSON array of ids a line; with --decode the reverse.");
  command->add_option("--model", options->folder, "Folder with tokenizer.json")->required()->type_name("DIR");
  command->add_option("--input", options->input, "Input lines (-: standard input)")->type_name("FILE");
  command->add_option("--out", options->out, "Write here instead of standard output")->type_name("FILE");
  CLI::Option* const decode = command->add_flag("--decode", options->decode, "From ids to text");
  command
      ->add_flag("--add-special-tokens", options->add_special_tokens,
                 "As the model's template does (BOS, say)")
      ->excludes(decode);
  command
      ->add_flag("--skip-special-tokens", options->skip_special_tokens,
                 "Leave special tokens out when decoding")
      ->needs(decode);
  command->callback([options] { run(*options); });
}

}  // namespace octavo
