#include "octavo/text/added_tokens.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "octavo/text/json_parts.h"
#include "octavo/text/unicode.h"

namespace octavo {
namespace {

AddedToken read_token(const nlohmann::json& part, const std::string& where) {
  return {.id = token_id(part.at("id"), "added_tokens", part.at("content"), where),
          .content = part.at("content"),
          .single_word = part.at("single_word"),
          .lstrip = part.at("lstrip"),
          .rstrip = part.at("rstrip"),
          .normalized = part.at("normalized"),
          .special = part.at("special")};
}

bool is_single_word(std::string_view text, std::size_t begin, std::size_t end) {
  return (begin == 0 || !is_word(character_before(text, begin))) &&
         (end == text.size() || !is_word(character_at(text, end)));
}

// Goes no further left than `least`, lest a run of tokens that are white space take quadratic time.
std::size_t without_space_before(std::string_view text, std::size_t begin, std::size_t least) {
  while (begin > least && is_space(character_before(text, begin))) {
    do {
      --begin;
    } while ((static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80);
  }
  return begin;
}

std::size_t without_space_after(std::string_view text, std::size_t end) {
  while (end < text.size() && is_space(character_at(text, end))) end += utf8_step(text, end).length;
  return end;
}

}  // namespace

void AddedTokenMatcher::add(const std::string& pattern, const AddedToken& token) {
  std::int32_t node = 0;
  for (const char c : pattern) {
    std::int32_t next = child(node, c);
    if (next < 0) {
      next = static_cast<std::int32_t>(nodes_.size());
      nodes_.emplace_back();
      auto& children = nodes_[node].children;
      children.insert(std::lower_bound(children.begin(), children.end(), std::pair(c, 0)), {c, next});
    }
    node = next;
  }
  if (nodes_[node].token >= 0) return;
  nodes_[node].token = static_cast<std::int32_t>(tokens_.size());
  tokens_.push_back(token);
}

std::int32_t AddedTokenMatcher::child(std::int32_t node, char c) const {
  const auto& children = nodes_[node].children;
  const auto found = std::lower_bound(children.begin(), children.end(), std::pair(c, 0));
  return found == children.end() || found->first != c ? -1 : found->second;
}

std::optional<std::pair<std::int32_t, std::size_t>> AddedTokenMatcher::longest_at(
    std::string_view text, std::size_t position) const {
  std::optional<std::pair<std::int32_t, std::size_t>> best;
  std::int32_t node = 0;
  for (std::size_t i = position; i < text.size() && (node = child(node, text[i])) >= 0; ++i)
    if (nodes_[node].token >= 0) best.emplace(nodes_[node].token, i + 1);
  return best;
}

void AddedTokenMatcher::split(std::string_view text, const std::function<void(std::string_view)>& emit_text,
                              const std::function<void(std::int32_t)>& emit_token) const {
  std::size_t rest = 0;  // where the text not yet emitted begins
  for (std::size_t i = 0; !tokens_.empty() && i < text.size();) {
    const auto found = longest_at(text, i);
    if (!found) {
      ++i;
      continue;
    }
    const AddedToken& token = tokens_[found->first];
    std::size_t begin = i;
    std::size_t end = i = found->second;  // the search goes on after the token itself, whatever it swallows
    if (token.single_word && !is_single_word(text, begin, end)) continue;
    if (token.lstrip) begin = without_space_before(text, begin, rest);
    if (token.rstrip) end = without_space_after(text, end);
    if (begin > rest) emit_text(text.substr(rest, begin - rest));
    emit_token(token.id);
    rest = end;
  }
  if (rest < text.size()) emit_text(text.substr(rest));
}

AddedTokens::AddedTokens(const nlohmann::json& part, const Vocabulary& vocabulary,
                         const Normalizer& normalizer, const std::string& where) {
  Vocabulary seen;
  auto next_id = static_cast<std::int32_t>(vocabulary.size());
  for (const auto& entry : part) {
    AddedToken token = read_token(entry, where);
    const std::string shown = printable_json(token.content);
    if (token.content.empty()) fail("{}: added_tokens has an empty content; remove that entry", where);
    if (!seen.emplace(token.content, token.id).second)
      fail("{}: added_tokens holds {} twice; keep one of them", where, shown);
    // HF numbers the tokens itself, whatever the file says, so a file that disagrees has no one meaning.
    const auto known = vocabulary.find(token.content);
    const std::int32_t expected = known != vocabulary.end() ? known->second : next_id;
    if (token.id != expected)
      fail("{}: added_tokens gives {} the id {} where Hugging Face would give it {}; number the tokens alike",
           where, shown, token.id, expected);
    if (token.id >= next_id) next_id = token.id + 1;
    tokens_.push_back(std::move(token));
  }
  // Special tokens first: they win over a normalized token that looks the same.
  for (const bool special : {true, false})
    for (const auto& token : tokens_) {
      if (token.special != special) continue;
      if (token.normalized)
        normalized_.add(normalizer.empty() ? token.content : normalizer.apply(token.content), token);
      else
        raw_.add(token.content, token);
    }
}

}  // namespace octavo
