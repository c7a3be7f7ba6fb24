#include "octavo/text/unicode.h"

#include <gtest/gtest.h>

#include "octavo/base/error.h"

namespace octavo {
namespace {

TEST(Utf8, StepsOverEveryCharacter) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string bytes;
    append_utf8(bytes, c);
    const Utf8Step step = utf8_step(bytes, 0);
    ASSERT_EQ(step.kind, Utf8Step::kCharacter);
    ASSERT_EQ(step.character, c);
    ASSERT_EQ(step.length, bytes.size());
    ASSERT_EQ(character_before(bytes, bytes.size()), c);
    for (std::size_t cut = 1; cut < bytes.size(); ++cut) {
      const Utf8Step truncated = utf8_step(std::string_view(bytes).substr(0, cut), 0);
      ASSERT_EQ(truncated.kind, Utf8Step::kTruncated);
      ASSERT_EQ(truncated.length, cut);
    }
  }
}

// Table 3-8 of the Unicode standard: how many bytes one U+FFFD stands for.
TEST(Utf8, InvalidStepsAreMaximalSubparts) {
  struct Case {
    std::string bytes;
    std::size_t length;
  };
  for (const auto& [bytes, length] :
       {Case{"\xC0\xAF", 1}, Case{"\xE0\x9F\x80", 1}, Case{"\xED\xA0\x80", 1}, Case{"\xF0\x8F\x80\x80", 1},
        Case{"\xF4\x91\x80\x80", 1}, Case{"\xF5\x80", 1}, Case{"\x80", 1}, Case{"\xE1\x80\xE2", 2},
        Case{"\xF0\x91\x92\xF1", 3}, Case{"\xC3\x28", 1}}) {
    const Utf8Step step = utf8_step(bytes, 0);
    EXPECT_EQ(step.kind, Utf8Step::kInvalid);
    EXPECT_EQ(step.length, length);
  }
}

TEST(Utf8, OldEquivalentsKeepTheLength) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string young, old;
    append_utf8(young, c);
    append_utf8(old, old_equivalent(c));
    ASSERT_EQ(young.size(), old.size());
    ASSERT_EQ(has_young_characters(young), old_equivalent(c) != c);
    ASSERT_EQ(old_equivalent(old_equivalent(c)), old_equivalent(c));
  }
}

TEST(Unicode, Words) {
  for (const char32_t c : {U'a', U'_', U'7', U'é', U'日', U'\u0301', U'\u200D', U'Ⓐ', U'Ⅳ', U'\U000105C0'})
    EXPECT_TRUE(is_word(c)) << static_cast<unsigned>(c);
  for (const char32_t c : {U' ', U'-', U'½', U'😀', U'\u200B', U'€'})
    EXPECT_FALSE(is_word(c)) << static_cast<unsigned>(c);
}

TEST(Unicode, NfcComposesAndReorders) {
  EXPECT_EQ(normalize_nfc("plain \xC3\xA9"), "plain \xC3\xA9");
  EXPECT_EQ(normalize_nfc("e\xCC\x81"), "\xC3\xA9");                                 // U+0301
  EXPECT_EQ(normalize_nfc("q\xCC\x87\xCC\xA3"), "q\xCC\xA3\xCC\x87");                // U+0307 U+0323
  EXPECT_EQ(normalize_nfc("\xE2\x84\xAB"), "\xC3\x85");                              // Angstrom sign
  EXPECT_EQ(normalize_nfc("\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB"), "\xED\x95\x9C");  // Hangul
  EXPECT_EQ(normalize_nfc(std::string_view("a\0e\xCC\x81", 5)), std::string_view("a\0\xC3\xA9", 4));
}

TEST(Unicode, NfcLeavesCharactersYoungerThanUnicode9Alone) {
  // U+1DFA (class 218, Unicode 14) would move before U+0301 (230); it also parts e from its accent.
  EXPECT_EQ(normalize_nfc("q\xCC\x81\xE1\xB7\xBA"), "q\xCC\x81\xE1\xB7\xBA");
  EXPECT_EQ(normalize_nfc("e\xE1\xB7\xBA\xCC\x81"), "e\xE1\xB7\xBA\xCC\x81");
}

}  // namespace
}  // namespace octavo
