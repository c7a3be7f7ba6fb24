#include "octavo/tasks/answers.h"

#include <algorithm>
#include <cctype>

namespace octavo {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }
constexpr std::string_view kMinus = "−";  // U+2212

struct Number {
  std::string value;
  std::size_t begin, end;  // with its sign
};

// The number whose digits begin at `at`; there is one.
Number number_at(std::string_view text, std::size_t at) {
  std::string whole;
  std::size_t end = at;
  while (end < text.size() && is_digit(text[end])) whole += text[end++];
  const auto group = [&](std::size_t comma) {
    const auto digits = text.substr(comma + 1, 3);
    return text[comma] == ',' && digits.size() == 3 && std::all_of(digits.begin(), digits.end(), is_digit) &&
           (comma + 4 == text.size() || !is_digit(text[comma + 4]));
  };
  for (bool first = true; end < text.size() && (!first || whole.size() <= 3) && group(end); first = false) {
    whole += text.substr(end + 1, 3);
    end += 4;
  }
  std::string fraction;
  if (end + 1 < text.size() && text[end] == '.' && is_digit(text[end + 1]))
    for (++end; end < text.size() && is_digit(text[end]); ++end) fraction += text[end];

  whole.erase(0, std::min(whole.find_first_not_of('0'), whole.size()));
  fraction.erase(fraction.find_last_not_of('0') + 1);
  std::string value = whole.empty() ? "0" : whole;
  if (!fraction.empty()) value += "." + fraction;

  const std::string_view before = text.substr(0, at);
  const std::size_t sign = before.ends_with('-') ? 1 : before.ends_with(kMinus) ? kMinus.size() : 0;
  const std::size_t begin = at - sign;
  const char left = begin == 0 ? ' ' : text[begin - 1];
  const bool negative = sign > 0 && !is_digit(left) && !is_letter(left) && left != ')' && left != ']';
  if (negative && value != "0") value.insert(0, "-");
  return {value, negative ? begin : at, end};
}

std::optional<Number> last_number_of(std::string_view text) {
  std::optional<Number> last;
  for (std::size_t at = 0; at < text.size();) {
    if (!is_digit(text[at])) {
      ++at;
      continue;
    }
    last = number_at(text, at);
    at = last->end;
  }
  return last;
}

// Without white space, what surrounds mathematics, and the period of a sentence.
std::string bare(std::string_view text) {
  text = trimmed(text);
  if (text.ends_with('.')) text.remove_suffix(1);
  std::string kept;
  for (const char c : text)
    if (c != '$' && std::isspace(static_cast<unsigned char>(c)) == 0) kept += c;
  return kept;
}

bool alone(std::string_view text, std::size_t at) {
  const auto part_of_word = [&](std::size_t i) {
    const auto c = static_cast<unsigned char>(text[i]);
    return is_letter(text[i]) || is_digit(text[i]) || c >= 0x80 || c == '\'';
  };
  return (at == 0 || !part_of_word(at - 1)) && (at + 1 == text.size() || !part_of_word(at + 1));
}

bool is_choice(char c) { return c >= 'A' && c <= 'J'; }

// The letter that stands after the word "answer" ending at `at`, with "is", punctuation and spaces between.
std::optional<char> letter_after_answer(std::string_view text, std::size_t at) {
  const auto skip = [&] {
    while (at < text.size() && std::string_view(" \t\r\n:*(\"$\\{}").find(text[at]) != std::string_view::npos)
      ++at;
  };
  skip();
  if (text.substr(at).starts_with("is ") || text.substr(at).starts_with("is:")) at += 2;
  skip();
  if (at == text.size() || !alone(text, at)) return std::nullopt;
  const char letter = static_cast<char>(std::toupper(static_cast<unsigned char>(text[at])));
  // "the answer is a number", "Answer: I think": an article or a pronoun before a word chooses nothing.
  const bool word = letter != text[at] || letter == 'I';
  const bool goes_on = at + 2 < text.size() && text[at + 1] == ' ' && is_letter(text[at + 2]);
  return is_choice(letter) && !(word && goes_on) ? std::optional(letter) : std::nullopt;
}

}  // namespace

std::string_view trimmed(std::string_view text) {
  const char* space = " \t\r\n\f\v";
  const std::size_t begin = text.find_first_not_of(space);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(space) - begin + 1);
}

std::optional<std::string> last_number(std::string_view text) {
  const std::optional<Number> number = last_number_of(text);
  return number ? std::optional(number->value) : std::nullopt;
}

std::optional<std::string_view> last_boxed(std::string_view text) {
  constexpr std::string_view kBoxed = "\\boxed{";
  for (std::size_t at = text.rfind(kBoxed); at != std::string_view::npos;
       at = at == 0 ? std::string_view::npos : text.rfind(kBoxed, at - 1)) {
    const std::size_t begin = at + kBoxed.size();
    int depth = 1;
    for (std::size_t i = begin; i < text.size(); ++i) {
      if (text[i] == '\\') {
        ++i;  // an escaped brace is text
      } else if (text[i] == '{') {
        ++depth;
      } else if (text[i] == '}' && --depth == 0) {
        return text.substr(begin, i - begin);
      }
    }
  }
  return std::nullopt;
}

std::optional<char> chosen_letter(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  constexpr std::string_view kWord = "answer";
  for (std::size_t at = lower.rfind(kWord); at != std::string::npos;
       at = at == 0 ? std::string::npos : lower.rfind(kWord, at - 1))
    if (const auto letter = letter_after_answer(text, at + kWord.size())) return letter;
  for (std::size_t i = text.size(); i >= 3; --i)
    if (text[i - 1] == ')' && is_choice(text[i - 2]) && text[i - 3] == '(') return text[i - 2];
  text = trimmed(text);
  if (text.empty() || !is_choice(text[0]) || !alone(text, 0)) return std::nullopt;
  // "A cat sat": the article of a sentence chooses nothing.
  return text.size() > 1 && text[1] == ' ' ? std::nullopt : std::optional(text[0]);
}

bool same_answer(std::string_view a, std::string_view b) {
  const std::string x = bare(a);
  const std::string y = bare(b);
  const auto number = [](const std::string& text) -> std::optional<std::string> {
    const std::optional<Number> found = last_number_of(text);
    const bool whole =
        found && found->end == text.size() && (found->begin == 0 || text.substr(0, found->begin) == "+");
    return whole ? std::optional(found->value) : std::nullopt;
  };
  if (const auto p = number(x), q = number(y); p && q) return *p == *q;
  return x == y;
}

}  // namespace octavo
