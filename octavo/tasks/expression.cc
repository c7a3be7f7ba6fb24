#include "octavo/tasks/expression.h"

#include <charconv>
#include <limits>
#include <numeric>
#include <utility>

namespace octavo {
namespace {

// Recursive descent: sum → product (± product)*, product → factor (*/ factor)*, factor → -factor | (sum) |
// number.
class Parser {
 public:
  explicit Parser(std::string_view text) : rest_(text) {}

  std::optional<Expression> parse() {
    std::optional<Expression> result = sum(0);
    return next().empty() ? result : std::nullopt;
  }

 private:
  static constexpr int kDeepest = 100;

  std::string_view next() {
    while (!rest_.empty() && (rest_[0] == ' ' || rest_[0] == '\t')) rest_.remove_prefix(1);
    return rest_;
  }

  bool take(std::string_view token) {
    if (!next().starts_with(token)) return false;
    rest_.remove_prefix(token.size());
    return true;
  }

  char take_operation(bool product) {
    if (product) return take("*") || take("×") ? '*' : take("/") || take("÷") ? '/' : 0;
    return take("+") ? '+' : take("-") || take("−") ? '-' : 0;
  }

  std::optional<Expression> sum(int depth) { return chain(depth, false); }

  std::optional<Expression> chain(int depth, bool product) {
    std::optional<Expression> left = product ? factor(depth) : chain(depth, true);
    while (left) {
      const char operation = take_operation(product);
      if (operation == 0) return left;
      const std::optional<Expression> right = product ? factor(depth) : chain(depth, true);
      if (!right) return std::nullopt;
      left = combine(*left, operation, *right);
    }
    return left;
  }

  std::optional<Expression> factor(int depth) {
    if (depth > kDeepest) return std::nullopt;
    if (take("-") || take("−")) {
      std::optional<Expression> inner = factor(depth + 1);
      if (!inner) return std::nullopt;
      inner->value = apply(Rational{0, 1}, '-', inner->value);
      inner->text = "-" + (inner->precedence < 2 ? "(" + inner->text + ")" : inner->text);
      inner->precedence = 1;
      return inner;
    }
    if (take("(")) {
      std::optional<Expression> inner = sum(depth + 1);
      if (!inner || !take(")")) return std::nullopt;
      return inner;
    }
    const std::string_view digits = next();
    std::int64_t value = 0;
    if (digits.empty() || digits[0] < '0' || digits[0] > '9') return std::nullopt;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc()) return std::nullopt;
    rest_.remove_prefix(static_cast<std::size_t>(end - digits.data()));
    return Expression::number(value);
  }

  std::string_view rest_;
};

}  // namespace

std::optional<Rational> apply(const std::optional<Rational>& a, char operation,
                              const std::optional<Rational>& b) {
  if (!a || !b) return std::nullopt;
  Rational right = *b;
  if (operation == '-') {
    if (__builtin_sub_overflow(std::int64_t{0}, right.numerator, &right.numerator)) return std::nullopt;
    operation = '+';
  }
  if (operation == '/') {
    if (right.numerator == 0) return std::nullopt;
    std::swap(right.numerator, right.denominator);
    operation = '*';
  }
  Rational result;
  std::int64_t x = 0;
  std::int64_t y = 0;
  bool over = __builtin_mul_overflow(a->denominator, right.denominator, &result.denominator);
  if (operation == '+') {
    over = over || __builtin_mul_overflow(a->numerator, right.denominator, &x) ||
           __builtin_mul_overflow(right.numerator, a->denominator, &y) ||
           __builtin_add_overflow(x, y, &result.numerator);
  } else {
    over = over || __builtin_mul_overflow(a->numerator, right.numerator, &result.numerator);
  }
  constexpr std::int64_t kLowest = std::numeric_limits<std::int64_t>::min();  // has no absolute value
  if (over || result.numerator == kLowest || result.denominator == kLowest) return std::nullopt;
  const std::int64_t divisor = std::gcd(result.numerator, result.denominator);
  const std::int64_t sign = result.denominator < 0 ? -1 : 1;
  return Rational{sign * result.numerator / divisor, sign * result.denominator / divisor};
}

Expression Expression::number(std::int64_t value) {
  return {.text = std::to_string(value), .value = Rational{value, 1}, .numbers = {value}};
}

Expression combine(const Expression& a, char operation, const Expression& b) {
  const int precedence = operation == '+' || operation == '-' ? 0 : 1;
  const auto wrapped = [](const Expression& part, bool wrap) {
    return wrap ? "(" + part.text + ")" : part.text;
  };
  const bool right_binds = operation == '-' || operation == '/';  // a - (b - c) is not a - b - c
  Expression result;
  result.text = wrapped(a, a.precedence < precedence) + " " + operation + " " +
                wrapped(b, b.precedence < precedence || (right_binds && b.precedence == precedence));
  result.value = apply(a.value, operation, b.value);
  result.numbers = a.numbers;
  result.numbers.insert(result.numbers.end(), b.numbers.begin(), b.numbers.end());
  result.precedence = precedence;
  return result;
}

std::optional<Expression> parse_expression(std::string_view text) { return Parser(text).parse(); }

}  // namespace octavo
