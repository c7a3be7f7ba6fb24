// A user's regular expression, with groups (PCRE2, Unicode).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace octavo {

// Immutable; several threads may match at once.
class Pattern {
 public:
  // Error with the place of the fault where `pattern` is broken; `where` names it.
  Pattern(const std::string& pattern, const std::string& where);

  // What the last match in `text` caught: its first group if the pattern has one, else all of the match.
  // Nothing without a match, or where the group took no part in it. Error where the pattern needs absurdly
  // many steps.
  std::optional<std::string_view> last_catch(std::string_view text) const;

 private:
  std::string where_;
  std::shared_ptr<const void> code_;  // pcre2_code
};

}  // namespace octavo
