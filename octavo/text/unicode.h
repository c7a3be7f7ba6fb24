// UTF-8 and the character properties that tokenization depends on.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace octavo {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// One step through bytes that may be UTF-8.
struct Utf8Step {
  enum Kind {
    kCharacter,
    kInvalid,   // `length` bytes that no continuation can mend (the Unicode standard's "maximal subpart")
    kTruncated  // the bytes end inside a character that is well-formed so far
  };
  Kind kind;
  char32_t character;  // valid for kCharacter
  std::size_t length;  // bytes this step covers, at least 1
};

// The step at `position`, which must be < bytes.size().
Utf8Step utf8_step(std::string_view bytes, std::size_t position);
// The character that starts at / ends before `position`; `text` must be valid UTF-8.
char32_t character_at(std::string_view text, std::size_t position);
char32_t character_before(std::string_view text, std::size_t position);
void append_utf8(std::string& out, char32_t character);

// Throws Error naming the byte offset of the first byte that is not UTF-8; `what` names the text.
void require_utf8(std::string_view text, std::string_view what);

// Hugging Face `tokenizers` sees Unicode 16 through its regex engine; the libraries of a machine may be older
// and give a younger character no category. This gives an old character with the same category and UTF-8
// length, and `character` itself when it is old enough.
char32_t old_equivalent(char32_t character);
// True when some character of `text` has an old_equivalent other than itself.
bool has_young_characters(std::string_view text);

bool is_space(char32_t character);  // White_Space
bool is_word(char32_t character);   // \w of Unicode TS #18: alphabetic, mark, digit, connector, joiner

// Normalization form C as `tokenizers` computes it: its tables are Unicode 9's, so a younger character
// neither composes nor reorders. `text` must be valid UTF-8.
std::string normalize_nfc(std::string_view text);

}  // namespace octavo
