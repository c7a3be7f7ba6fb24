// Reads tokenizer.json, the format of Hugging Face `tokenizers`.
#include <nlohmann/json.hpp>

#include "octavo/text/json_parts.h"
#include "octavo/text/tokenizer_parts.h"

namespace octavo {
namespace {

using Json = nlohmann::json;

// A part that may be left out, which means null.
const Json& optional_part(const Json& root, const char* key) {
  static const Json null;
  const auto found = root.find(key);
  return found == root.end() ? null : *found;
}

Json parse(std::string_view text, const std::string& where) {
  Json root = parse_json(text, where);
  if (!root.is_object())
    fail("{}: not a tokenizer.json: the top level is no object; give the right file", where);
  if (root.value("version", "1.0") != "1.0")
    fail("{}: version {} is not supported; export it with Hugging Face tokenizers as version 1.0", where,
         printable_json(root.at("version")));
  for (const char* key : {"truncation", "padding"})
    if (!optional_part(root, key).is_null())
      fail("{}: '{}' is set and would change prompts silently; set it to null", where, key);
  return root;
}

// The ids that a TemplateProcessing puts before and after the text are added to `prefix` and `suffix`.
void read_template(const Json& part, const std::string& where, std::vector<std::int32_t>& prefix,
                   std::vector<std::int32_t>& suffix) {
  std::vector<std::int32_t> before, after;
  bool text_seen = false;
  for (const auto& piece : part.at("single")) {
    if (piece.contains("Sequence")) {
      if (text_seen || piece.at("Sequence").at("id") != "A")
        refuse_part("post_processor TemplateProcessing", "single with more than the sequence A",
                    "one sequence A", where);
      text_seen = true;
      continue;
    }
    const std::string name = piece.at("SpecialToken").at("id");
    for (const auto& id : part.at("special_tokens").at(name).at("ids"))
      (text_seen ? after : before).push_back(token_id(id, "post_processor", name, where));
  }
  if (!text_seen)
    refuse_part("post_processor TemplateProcessing", "single without the sequence A", "one sequence A",
                where);
  prefix.insert(prefix.begin(), before.begin(), before.end());
  suffix.insert(suffix.end(), after.begin(), after.end());
}

}  // namespace

struct TokenizerParts::Json {
  nlohmann::json root;
};

TokenizerParts::TokenizerParts(std::string_view json, const std::string& where) try
    : TokenizerParts(Json{parse(json, where)}, where) {
} catch (const nlohmann::json::exception& error) {
  fail("{}: not laid out as a tokenizer.json: {}; export the file again", where, printable(error.what()));
}

TokenizerParts::TokenizerParts(const Json& json, const std::string& where)
    : normalizer(optional_part(json.root, "normalizer"), where),
      pre_tokenizer(optional_part(json.root, "pre_tokenizer"), where),
      model(json.root.at("model"), pre_tokenizer.byte_level(), where),
      added(optional_part(json.root, "added_tokens"), model.vocabulary(), normalizer, where),
      decoder(optional_part(json.root, "decoder"), where) {
  for_each_step(optional_part(json.root, "post_processor"), "processors", [&](const nlohmann::json& step) {
    const std::string type = step.at("type");
    if (type == "TemplateProcessing")
      read_template(step, where, prefix, suffix);
    else if (type != "ByteLevel")  // which only moves offsets
      refuse_part("post_processor", type, "ByteLevel, TemplateProcessing", where);
  });

  const auto token = [&](std::int32_t id) -> Token& {
    if (static_cast<std::size_t>(id) >= tokens.size()) tokens.resize(static_cast<std::size_t>(id) + 1);
    return tokens[static_cast<std::size_t>(id)];
  };
  for (const auto& [content, id] : model.vocabulary()) token(id) = {true, false, decoder.meaning_of(content)};
  for (const auto& one : added.tokens()) token(one.id) = {true, one.special, decoder.meaning_of(one.content)};
}

}  // namespace octavo
