// A Unicode regular expression out of a tokenizer.json, on PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

struct RegexMatch {
  std::size_t begin, end;  // bytes
};

// Matches as Hugging Face `tokenizers` does, whose engine is Oniguruma with Unicode 16: patterns are
// restricted to the syntax that means the same in both engines, and younger characters are matched through an
// old equivalent. Immutable; several threads may match at once.
class Regex {
 public:
  // Throws Error when `pattern` is broken or uses syntax that the engines disagree on; `where` names its
  // place.
  Regex(const std::string& pattern, const std::string& where);
  // Matches `text` itself, no character being special.
  static Regex literal(const std::string& text, const std::string& where);

  // All matches in `text` from left to right, which must be valid UTF-8. An empty match directly after
  // another match does not count. Throws Error when the pattern needs absurdly many steps.
  std::vector<RegexMatch> find_all(std::string_view text) const;

 private:
  Regex() = default;
  void compile(const std::string& pattern, unsigned options);

  std::string where_;
  std::shared_ptr<const void> code_;  // pcre2_code
};

}  // namespace octavo
