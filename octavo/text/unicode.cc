#include "octavo/text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "octavo/base/error.h"

namespace octavo {
namespace {

struct LikeRange {
  char32_t first, last, like;
};
struct Range {
  char32_t first, last;
};

#include "octavo/text/unicode_tables.inc"

// The range of a sorted table that holds `character`, or null.
template <typename T, std::size_t kSize>
const T* find_range(const T (&table)[kSize], char32_t character) {
  const T* after = std::upper_bound(table, table + kSize, character,
                                    [](char32_t c, const T& range) { return c < range.first; });
  if (after == table || character > (after - 1)->last) return nullptr;
  return after - 1;
}

// Characters that HF's normalizer passes through as if they were plain letters.
bool inert_in_nfc(char32_t character) {
  return character >= kInertInNfc[0].first &&
         (find_range(kInertInNfc, character) != nullptr || find_range(kYoung, character) != nullptr);
}

void append_nfc(std::string& out, std::string_view text) {
  if (text.empty()) return;
  utf8proc_uint8_t* raw = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
      &raw, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(raw, &std::free);
  if (size < 0) fail_system("Unicode normalization failed: {}", utf8proc_errmsg(size));
  out.append(reinterpret_cast<const char*>(raw), static_cast<std::size_t>(size));
}

}  // namespace

Utf8Step utf8_step(std::string_view bytes, std::size_t position) {
  assert(position < bytes.size());
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[position + i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {Utf8Step::kCharacter, lead, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Step::kInvalid, 0, 1};
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and what lies beyond U+10FFFF.
  const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t character = lead & (0x7FU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if (position + i == bytes.size()) return {Utf8Step::kTruncated, 0, i};
    const unsigned next = byte(i);
    const bool fits = i == 1 ? next >= low && next <= high : (next & 0xC0) == 0x80;
    if (!fits) return {Utf8Step::kInvalid, 0, i};
    character = character << 6 | (next & 0x3F);
  }
  return {Utf8Step::kCharacter, character, length};
}

char32_t character_at(std::string_view text, std::size_t position) {
  return utf8_step(text, position).character;
}

char32_t character_before(std::string_view text, std::size_t position) {
  assert(position > 0);
  do {
    --position;
  } while (position > 0 && (static_cast<unsigned char>(text[position]) & 0xC0) == 0x80);
  return character_at(text, position);
}

void append_utf8(std::string& out, char32_t character) {
  utf8proc_uint8_t buffer[4];
  const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(character), buffer);
  out.append(reinterpret_cast<const char*>(buffer), static_cast<std::size_t>(size));
}

void require_utf8(std::string_view text, std::string_view what) {
  for (std::size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text, i);
    if (step.kind != Utf8Step::kCharacter)
      fail("{} is not valid UTF-8 at byte {}; convert it to UTF-8 first", what, i);
    i += step.length;
  }
}

char32_t old_equivalent(char32_t character) {
  if (character < kYoung[0].first) return character;
  const LikeRange* range = find_range(kYoung, character);
  return range == nullptr ? character : range->like;
}

bool has_young_characters(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0xE0) {  // the table starts above U+07FF
      ++i;
      continue;
    }
    const Utf8Step step = utf8_step(text, i);
    if (old_equivalent(step.character) != step.character) return true;
    i += step.length;
  }
  return false;
}

bool is_space(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_word(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(old_equivalent(c)))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      // Joiners, and the enclosed letters, which are symbols with the Alphabetic property.
      return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
             (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
  }
}

std::string normalize_nfc(std::string_view text) {
  // Below U+0300, whose lead byte is 0xCC, every text is in form C.
  if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0xCC; }))
    return std::string(text);
  std::string out;
  out.reserve(text.size());
  std::size_t start = 0;
  for (std::size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text, i);
    if (inert_in_nfc(step.character)) {
      append_nfc(out, text.substr(start, i - start));
      out.append(text, i, step.length);
      start = i + step.length;
    }
    i += step.length;
  }
  append_nfc(out, text.substr(start));
  return out;
}

}  // namespace octavo
