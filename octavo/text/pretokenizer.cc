#include "octavo/text/pretokenizer.h"

#include <nlohmann/json.hpp>

#include "octavo/text/json_parts.h"

namespace octavo {
namespace {

// The split of GPT-2 (openai/gpt-2, encoder.py), which ByteLevel brings along.
constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

PreTokenizer::PreTokenizer(const nlohmann::json& part, const std::string& where) {
  for_each_step(part, "pretokenizers", [&](const nlohmann::json& step) { add(step, where); });
}

void PreTokenizer::add(const nlohmann::json& part, const std::string& where) {
  const std::string type = part.at("type");
  if (byte_level_)
    fail("{}: pre_tokenizer '{}' after ByteLevel is not supported; make ByteLevel the last", where, type);

  const std::string place = where + ": pre_tokenizer " + type;
  if (type == "ByteLevel") {
    byte_level_ = true;
    Step step{.regex = Regex(kGpt2Pattern, place)};
    step.add_prefix_space = part.at("add_prefix_space");
    step.cut = part.value("use_regex", true);
    if (step.cut || step.add_prefix_space) steps_.push_back(std::move(step));
  } else if (type == "Digits") {
    steps_.push_back({.regex = Regex(part.at("individual_digits") ? R"(\p{N})" : R"(\p{N}+)", place)});
  } else if (type == "Split") {
    const auto& pattern = part.at("pattern");
    Step step{.regex = pattern.contains("Regex") ? Regex(pattern.at("Regex"), place)
                                                 : Regex::literal(pattern.at("String"), place)};
    const std::string behavior = part.at("behavior");
    const bool invert = part.at("invert");
    if (behavior == "Removed") {
      (invert ? step.keep_rest : step.keep_matches) = false;
    } else if (behavior != "Isolated") {
      refuse_part("pre_tokenizer Split with behavior", behavior, "Isolated, Removed", where);
    }
    steps_.push_back(std::move(step));
  } else {
    refuse_part("pre_tokenizer", type, "Split, Digits, ByteLevel", where);
  }
}

void PreTokenizer::run(std::size_t index, std::string_view text, const Emit& emit) const {
  if (text.empty()) return;
  if (index == steps_.size()) return emit(text);

  const Step& step = steps_[index];
  std::string spaced;
  if (step.add_prefix_space && text.front() != ' ') {
    spaced.append(1, ' ').append(text);
    text = spaced;
  }
  if (!step.cut) return run(index + 1, text, emit);

  std::size_t rest = 0;
  for (const auto& [begin, end] : step.regex.find_all(text)) {
    if (step.keep_rest) run(index + 1, text.substr(rest, begin - rest), emit);
    if (step.keep_matches) run(index + 1, text.substr(begin, end - begin), emit);
    rest = end;
  }
  if (step.keep_rest) run(index + 1, text.substr(rest), emit);
}

}  // namespace octavo
