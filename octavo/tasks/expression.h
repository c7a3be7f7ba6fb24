// Arithmetic in whole numbers and their exact quotients.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

// In lowest terms; the denominator is positive.
struct Rational {
  std::int64_t numerator = 0;
  std::int64_t denominator = 1;

  bool operator==(const Rational&) const = default;
};

// Nothing where an operation is not defined (division by zero) or leaves 64 bits.
std::optional<Rational> apply(const std::optional<Rational>& a, char operation,
                              const std::optional<Rational>& b);

struct Expression {
  std::string text;
  std::optional<Rational> value;
  std::vector<std::int64_t> numbers;  // that stand in it, from left to right
  int precedence = 2;                 // of its outermost operation: 0: + -, 1: * /, 2: a number

  static Expression number(std::int64_t value);
};

// a operation b, with the parentheses that its text needs.
Expression combine(const Expression& a, char operation, const Expression& b);

// Reads numbers, + - * / (also × ÷ −), parentheses and a leading minus; nothing where `text` is not such an
// expression as a whole, or is nested deeper than 100.
std::optional<Expression> parse_expression(std::string_view text);

}  // namespace octavo
