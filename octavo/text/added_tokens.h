// The "added_tokens" of tokenizer.json: strings that become one token wherever they stand in the text.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/text/bpe.h"
#include "octavo/text/normalizer.h"

namespace octavo {

struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool single_word = false;  // only between non-word characters
  bool lstrip = false;       // swallows the white space to its left
  bool rstrip = false;       // … to its right
  bool normalized = false;   // looked for after normalization
  bool special = false;      // left out of decoded text on request
};

// Finds tokens in text, leftmost and longest first.
class AddedTokenMatcher {
 public:
  // Adds `token` under the text `pattern`; of two equal patterns the first counts.
  void add(const std::string& pattern, const AddedToken& token);

  // Cuts `text` (valid UTF-8) into added tokens and the text between; every piece of text is non-empty.
  void split(std::string_view text, const std::function<void(std::string_view)>& emit_text,
             const std::function<void(std::int32_t)>& emit_token) const;

 private:
  struct Node {
    std::vector<std::pair<char, std::int32_t>> children;  // sorted
    std::int32_t token = -1;
  };
  std::int32_t child(std::int32_t node, char c) const;
  // The longest token at `position`: its index and end.
  std::optional<std::pair<std::int32_t, std::size_t>> longest_at(std::string_view text,
                                                                 std::size_t position) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_{1};
};

class AddedTokens {
 public:
  AddedTokens() = default;
  // Throws Error for contents that repeat and for ids that contradict the vocabulary; `where` names the file.
  AddedTokens(const nlohmann::json& part, const Vocabulary& vocabulary, const Normalizer& normalizer,
              const std::string& where);

  const std::vector<AddedToken>& tokens() const { return tokens_; }
  const AddedTokenMatcher& raw() const { return raw_; }                // to apply before normalization
  const AddedTokenMatcher& normalized() const { return normalized_; }  // to apply after it

 private:
  std::vector<AddedToken> tokens_;
  AddedTokenMatcher raw_, normalized_;
};

}  // namespace octavo
