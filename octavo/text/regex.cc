#include "octavo/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cassert>
#include <initializer_list>
#include <new>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/text/unicode.h"

namespace octavo {
namespace {

[[noreturn]] void refuse_syntax(std::string_view syntax, const std::string& where) {
  fail(
      "{}: regex syntax '{}' is not supported, its meaning differs between engines; rewrite the pattern "
      "without it",
      where, printable(syntax));
}

bool starts_with_any(std::string_view text, std::initializer_list<std::string_view> prefixes) {
  for (const auto prefix : prefixes)
    if (text.starts_with(prefix)) return true;
  return false;
}

// Length of the escape at the start of `rest`, which begins with a backslash.
std::size_t check_escape(std::string_view rest, const std::string& where) {
  if (rest.size() < 2) refuse_syntax(rest, where);
  const char c = rest[1];
  if (c == 'p' || c == 'P') {  // \p{Lu}: general categories only, by their short names
    const auto close = rest.find('}');
    if (rest.substr(2, 1) != "{" || rest.substr(3, 1) == "^" || (close != 4 && close != 5))
      refuse_syntax(rest.substr(0, 8), where);
    return close + 1;
  }
  const bool letter_or_digit = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  const bool same_in_both = std::string_view("rntsSdD").find(c) != std::string_view::npos;
  if ((letter_or_digit && !same_in_both) || static_cast<unsigned char>(c) >= 0x80)
    refuse_syntax(rest.substr(0, 2), where);
  return 2;
}

// Oniguruma (Ruby syntax) and PCRE2 agree on what this lets through: alternation, plain and case-insensitive
// groups, look-around, quantifiers, simple classes, and the escapes above.
void check_portable(std::string_view pattern, const std::string& where) {
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size();) {
    const auto rest = pattern.substr(i);
    const char c = rest[0];
    if (c == '\\') {
      i += check_escape(rest, where);
      continue;
    }
    if (in_class) {
      if (c == '[' || rest.starts_with("&&")) refuse_syntax(rest.substr(0, 2), where);
      if (c == ']') in_class = false;
    } else if (c == '[') {
      in_class = true;
      if (starts_with_any(rest, {"[]", "[^]"})) refuse_syntax(rest.substr(0, 3), where);
    } else if (c == '^' || c == '$' || c == '.') {  // how they treat line ends differs
      refuse_syntax(rest.substr(0, 1), where);
    } else if (rest.starts_with("}+")) {  // possessive here, a second quantifier there
      refuse_syntax("}+", where);
    } else if (rest.starts_with("(*") ||
               (rest.starts_with("(?") &&
                !starts_with_any(rest, {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}))) {
      refuse_syntax(rest.substr(0, 4), where);
    }
    ++i;
  }
}

std::string pcre2_message(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

// `text` with every young character replaced by its old equivalent of the same length, so that offsets stay.
std::string with_old_equivalents(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text, i);
    append_utf8(out, old_equivalent(step.character));
    i += step.length;
  }
  assert(out.size() == text.size());
  return out;
}

}  // namespace

Regex::Regex(const std::string& pattern, const std::string& where) : where_(where) {
  check_portable(pattern, where);
  compile(pattern, PCRE2_UCP);
}

Regex Regex::literal(const std::string& text, const std::string& where) {
  if (text.empty()) fail("{}: the pattern is empty; remove the part that holds it", where);
  Regex regex;
  regex.where_ = where;
  regex.compile(text, PCRE2_LITERAL);
  return regex;
}

void Regex::compile(const std::string& pattern, unsigned options) {
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  if (context == nullptr) throw std::bad_alloc();
  pcre2_set_max_pattern_length(context.get(), 1U << 16);  // real patterns have a few hundred characters
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   options | PCRE2_UTF, &error, &offset, context.get());
  if (code == nullptr)
    fail("{}: broken regex at byte {}: {}; mend the pattern", where_, offset, pcre2_message(error));
  code_ = std::shared_ptr<const void>(code, [code](const void*) { pcre2_code_free(code); });
  pcre2_jit_compile(code,
                    PCRE2_JIT_COMPLETE);  // where there is no JIT compiler, matching is slower and the same
}

std::vector<RegexMatch> Regex::find_all(std::string_view text) const {
  std::string replaced;
  if (has_young_characters(text)) {
    replaced = with_old_equivalents(text);
    text = replaced;
  }
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create(1, nullptr), &pcre2_match_data_free);
  if (data == nullptr) throw std::bad_alloc();

  std::vector<RegexMatch> matches;
  for (std::size_t start = 0; start <= text.size();) {
    const auto match = [&](unsigned options) {
      return pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start,
                         PCRE2_NO_UTF_CHECK | options, data.get(), nullptr);
    };
    int count = match(0);
    if (count == PCRE2_ERROR_JIT_STACKLIMIT) count = match(PCRE2_NO_JIT);  // slower, its stack is on the heap
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0)
      fail("{}: matching a text of {} bytes gave up: {}; simplify the pattern or shorten the text", where_,
           text.size(), pcre2_message(count));
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data.get());
    const RegexMatch found{bounds[0], bounds[1]};
    const bool empty = found.begin == found.end;
    if (!empty || matches.empty() || matches.back().end != found.end) matches.push_back(found);
    start = found.end;
    if (empty) start += start < text.size() ? utf8_step(text, start).length : 1;
  }
  return matches;
}

}  // namespace octavo
