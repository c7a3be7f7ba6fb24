#include "octavo/text/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "octavo/base/error.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<std::string> matches(const std::string& pattern, const std::string& text) {
  std::vector<std::string> found;
  for (const auto& [begin, end] : Regex(pattern, "test").find_all(text))
    found.push_back(text.substr(begin, end - begin));
  return found;
}

TEST(Regex, FindsFromTheLeft) {
  EXPECT_THAT(matches(R"(\p{L}+|\p{N}{1,3})", "ab12345 \xC3\xA9"),
              ElementsAre("ab", "123", "45", "\xC3\xA9"));
  EXPECT_THAT(matches(R"(\s+(?!\S)|\s+)", "a  b "), ElementsAre(" ", " ", " "));
  EXPECT_THAT(matches(R"((?i:'s|'ll))", "'S 'lL '\xC5\xBF"),
              ElementsAre("'S", "'lL", "'\xC5\xBF"));  // long s
  EXPECT_THAT(matches("a", ""), IsEmpty());
}

TEST(Regex, EmptyMatchesEndNoLoopAndTouchNoOtherMatch) {
  EXPECT_THAT(matches("a*", "baa\xC3\xA9"), ElementsAre("", "aa", ""));
  EXPECT_THAT(matches("(?=b)", "abb"), ElementsAre("", ""));
}

TEST(Regex, SpaceIsWhiteSpaceOfTodaysUnicode) {
  EXPECT_THAT(matches(R"(\s)", "\xE1\xA0\x8E\xE2\x80\x8B\x1C"), IsEmpty());  // U+180E U+200B U+001C
  EXPECT_THAT(matches(R"(\s)", "\xC2\x85\xC2\xA0\v"),
              ElementsAre("\xC2\x85", "\xC2\xA0", "\v"));  // U+0085 U+00A0
}

TEST(Regex, KnowsCharactersOfUnicode16) {
  const std::string letter = "\xF0\x90\x97\x80";  // U+105C0, Todhri, a letter since Unicode 16
  const std::string digit = "\xF0\x90\xB5\x80";   // U+10D40, Garay, a digit since Unicode 16
  EXPECT_THAT(matches(R"(\p{L}+)", "a" + letter + digit), ElementsAre("a" + letter));
  EXPECT_THAT(matches(R"([^\p{L}]+)", "a" + letter + digit), ElementsAre(digit));
  EXPECT_THAT(matches(R"(\p{Nd})", "a" + letter + digit), ElementsAre(digit));
}

TEST(Regex, LiteralTakesNoSyntax) {
  const Regex regex = Regex::literal(".*", "test");
  const auto found = regex.find_all("a.*b");
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].begin, 1U);
  EXPECT_EQ(found[0].end, 3U);
  EXPECT_THROW(Regex::literal("", "test"), Error);
}

TEST(Regex, RefusesSyntaxOnWhichEnginesDiffer) {
  for (const char* pattern :
       {R"(\w+)", R"(\bx)",      R"(\h)",  R"(\x41)", R"((a)\1)", "^a",         "a$",
        ".",      "[[:alpha:]]", "[a&&b]", "[]a]",    "a{1,3}+",  R"(\p{Han})", R"(\p{^L})",
        R"(\pL)", "(?<name>a)",  "(?m:a)", "(?#x)",   "(*UCP)a",  "a\\"})
    EXPECT_THAT([&] { Regex(pattern, "file: part"); },
                ::testing::ThrowsMessage<Error>(HasSubstr("file: part: regex syntax")))
        << pattern;
  EXPECT_NO_THROW(Regex(R"([^\r\n\p{L}\p{N}]?+[\p{Lu}\p{M}\]]*(?>a)\.\[)", "test"));
}

TEST(Regex, RefusesBrokenPatterns) {
  for (const char* pattern : {"(a", "a)", "[a", "*a", R"(\p{Qq})", "[b-a]"})
    EXPECT_THROW(Regex(pattern, "test"), Error);
}

TEST(Regex, GivesUpOnExplosivePatterns) {
  const Regex regex("(?:a+)+[bc]", "test");
  EXPECT_THAT([&] { regex.find_all(std::string(64, 'a')); },
              ::testing::ThrowsMessage<Error>(HasSubstr("test: matching a text of 64 bytes gave up")));
}

// The JIT's stack of 32 KiB is too small for this; the interpreter takes over.
TEST(Regex, DeepMatchesNeedNoLuck) {
  const std::string text(100'000, 'a');
  const auto found = Regex("(?:a|b(?:c))+", "test").find_all(text);
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].end, text.size());
}

}  // namespace
}  // namespace octavo
