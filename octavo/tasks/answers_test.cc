#include "octavo/tasks/answers.h"

#include <gtest/gtest.h>

#include "octavo/tasks/expression.h"
#include "octavo/tasks/pattern.h"

namespace octavo {
namespace {

TEST(LastNumber, ReadsOneSpellingForEachValue) {
  const std::pair<const char*, const char*> cases[] = {
      {"42", "42"},
      {"The answer is 42.", "42"},
      {"17 + 25 = 42", "42"},
      {"042", "42"},
      {"42.50", "42.5"},
      {"42.0", "42"},
      {"0.0", "0"},
      {"-0", "0"},
      {"-7", "-7"},
      {"= −7", "-7"},
      {"10-3", "3"},
      {"x-3", "3"},
      {"(2)-3", "3"},
      {"(-3)", "-3"},
      {"1,234,567", "1234567"},
      {"1,23", "23"},       // no groups of three
      {"12, 345", "345"},   // a list
      {"1234,567", "567"},  // the first group has at most three
      {"$1,000.00!", "1000"},
      {"1.2.3", "3"},
      {"3.", "3"},
      {".5", "5"},
      {"99999999999999999999999999999999999999", "99999999999999999999999999999999999999"},
  };
  for (const auto& [text, number] : cases) EXPECT_EQ(last_number(text), number) << text;
  EXPECT_EQ(last_number("none"), std::nullopt);
  EXPECT_EQ(last_number(""), std::nullopt);
}

TEST(LastBoxed, MatchesBraces) {
  EXPECT_EQ(last_boxed("so \\boxed{4} or \\boxed{\\frac{1}{2}} it is"), "\\frac{1}{2}");
  EXPECT_EQ(last_boxed("\\boxed{\\{1\\}}"), "\\{1\\}");
  EXPECT_EQ(last_boxed("\\boxed{4} and \\boxed{cut"), "4");
  EXPECT_EQ(last_boxed("\\boxed{}"), "");
  EXPECT_EQ(last_boxed("boxed{4}"), std::nullopt);
  EXPECT_EQ(last_boxed("\\boxed{4\\"), std::nullopt);
}

TEST(ChosenLetter, PrefersTheWordAnswer) {
  EXPECT_EQ(chosen_letter("(A) is wrong, so the answer is (C)."), 'C');
  EXPECT_EQ(chosen_letter("Answer: c"), 'C');
  EXPECT_EQ(chosen_letter("**Answer:** B"), 'B');
  EXPECT_EQ(chosen_letter("The answer is \\boxed{D}"), std::nullopt);  // `boxed` reads that
  EXPECT_EQ(chosen_letter("The answer is a number. The final answer is B because"), 'B');
  EXPECT_EQ(chosen_letter("Answer: I think it is (B)"), 'B');
  EXPECT_EQ(chosen_letter("answers vary: (A) or (D)"), 'D');
}

TEST(ChosenLetter, OrTheTextIsTheLetter) {
  EXPECT_EQ(chosen_letter("B"), 'B');
  EXPECT_EQ(chosen_letter(" B.\n"), 'B');
  EXPECT_EQ(chosen_letter("B) because"), 'B');
  EXPECT_EQ(chosen_letter("A cat sat"), std::nullopt);
  EXPECT_EQ(chosen_letter("Because"), std::nullopt);
  EXPECT_EQ(chosen_letter("K"), std::nullopt);
  EXPECT_EQ(chosen_letter(""), std::nullopt);
}

TEST(SameAnswer, ComparesNumbersByValueAndTextWithoutSpaces) {
  EXPECT_TRUE(same_answer("$1,000$", "1000.0"));
  EXPECT_TRUE(same_answer("+5", "5."));
  EXPECT_FALSE(same_answer("-5", "5"));
  EXPECT_TRUE(same_answer("\\frac{1}{2}", " \\frac{1} {2}"));
  EXPECT_FALSE(same_answer("x = 5", "5"));
  EXPECT_FALSE(same_answer("5 apples", "5"));
}

TEST(Expression, ReadsArithmeticExactly) {
  const auto value = [](const char* text) {
    const auto e = parse_expression(text);
    return e ? e->value : std::nullopt;
  };
  EXPECT_EQ(value("2 + 3 * 4"), (Rational{14, 1}));
  EXPECT_EQ(value("(2 + 3) * 4"), (Rational{20, 1}));
  EXPECT_EQ(value("10 - 3 - 2"), (Rational{5, 1}));
  EXPECT_EQ(value("12 / 4 / 3"), (Rational{1, 1}));
  EXPECT_EQ(value("1 / 3"), (Rational{1, 3}));
  EXPECT_EQ(value("1 / (1 - 4)"), (Rational{-1, 3}));
  EXPECT_EQ(value("(8 ÷ 4) × −3"), (Rational{-6, 1}));
  EXPECT_EQ(value("-(2 - 5)"), (Rational{3, 1}));
  EXPECT_EQ(value("1 / 0"), std::nullopt);
  EXPECT_EQ(value("9223372036854775807 + 1"), std::nullopt);
  EXPECT_EQ(value("4611686018427387904 * 2"), std::nullopt);
  for (const char* broken : {"", "2 +", "2 3", "(2", "2)", "a + 1", "2 ** 3", "99999999999999999999", "1.5"})
    EXPECT_FALSE(parse_expression(broken)) << broken;
  EXPECT_FALSE(parse_expression(std::string(100'000, '(')));
  EXPECT_FALSE(parse_expression(std::string(100'000, '-')));
  EXPECT_EQ(parse_expression("3 * (7 - 25)")->numbers, (std::vector<std::int64_t>{3, 7, 25}));
}

TEST(Expression, WritesTheParenthesesThatItNeeds) {
  const auto n = [](std::int64_t v) { return Expression::number(v); };
  const Expression difference = combine(n(5), '-', combine(n(3), '-', n(2)));
  EXPECT_EQ(difference.text, "5 - (3 - 2)");
  EXPECT_EQ(combine(combine(n(5), '-', n(3)), '-', n(2)).text, "5 - 3 - 2");
  EXPECT_EQ(combine(difference, '*', n(2)).text, "(5 - (3 - 2)) * 2");
  EXPECT_EQ(combine(n(8), '/', combine(n(4), '*', n(2))).text, "8 / (4 * 2)");
}

TEST(Pattern, CatchesTheFirstGroupOfTheLastMatch) {
  EXPECT_EQ(Pattern("<a>(.*?)</a>", "x").last_catch("<a>1</a> <a>2</a>"), "2");
  EXPECT_EQ(Pattern("[0-9]+", "x").last_catch("1 22 333."), "333");
  EXPECT_EQ(Pattern("a|(b)", "x").last_catch("ba"), std::nullopt);
  EXPECT_EQ(Pattern("b*", "x").last_catch("äbb é"), "");  // an empty match at the end
  EXPECT_EQ(Pattern("z", "x").last_catch("ä"), std::nullopt);
  EXPECT_EQ(Pattern("ü(.)", "x").last_catch("\xff üñ"), "ñ");  // bytes that are not UTF-8 match nothing
}

}  // namespace
}  // namespace octavo
