#include "octavo/text/tokenizer.h"

#include <algorithm>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/text/detokenizer.h"
#include "octavo/text/tokenizer_parts.h"
#include "octavo/text/unicode.h"

namespace octavo {

Tokenizer Tokenizer::from_file(const std::string& path) { return from_json(read_file(path), path); }

Tokenizer Tokenizer::from_json(std::string_view json, const std::string& where) {
  return Tokenizer(std::make_shared<const TokenizerParts>(json, where));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  require_utf8(text, "the text");
  std::vector<std::int32_t> ids;
  if (add_special_tokens) ids = parts_->prefix;

  Bpe::Scratch scratch;
  const auto add_token = [&](std::int32_t id) { ids.push_back(id); };
  const auto add_word = [&](std::string_view word) { parts_->model.encode(word, scratch, ids); };
  const PreTokenizer::Emit emit = add_word;
  const auto add_plain = [&](std::string_view plain) { parts_->pre_tokenizer.split(plain, emit); };
  const auto add_raw = [&](std::string_view raw) {
    if (parts_->normalizer.empty())
      parts_->added.normalized().split(raw, add_plain, add_token);
    else
      parts_->added.normalized().split(parts_->normalizer.apply(raw), add_plain, add_token);
  };
  parts_->added.raw().split(text, add_raw, add_token);

  if (add_special_tokens) ids.insert(ids.end(), parts_->suffix.begin(), parts_->suffix.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const {
  StreamingDetokenizer detokenizer(*this, skip_special_tokens);
  std::string text;
  for (const std::int32_t id : ids) text += detokenizer.push(id);
  return text += detokenizer.finish();
}

const std::string& Tokenizer::token_bytes(std::int32_t id) const {
  if (id < 0 || id >= vocab_size())
    fail("token id {} is out of range; the tokenizer has ids 0 to {}", id, vocab_size() - 1);
  return parts_->tokens[static_cast<std::size_t>(id)].meaning.bytes;
}

bool Tokenizer::is_special(std::int32_t id) const {
  return id >= 0 && id < vocab_size() && parts_->tokens[static_cast<std::size_t>(id)].special;
}

std::int32_t Tokenizer::vocab_size() const { return static_cast<std::int32_t>(parts_->tokens.size()); }

std::optional<std::int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const auto& added = parts_->added.tokens();
  const auto found =
      std::find_if(added.begin(), added.end(), [&](const auto& one) { return one.content == token; });
  if (found != added.end()) return found->id;
  const auto& vocabulary = parts_->model.vocabulary();
  const auto known = vocabulary.find(token);
  return known == vocabulary.end() ? std::nullopt : std::optional(known->second);
}

}  // namespace octavo
