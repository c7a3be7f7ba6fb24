#include "octavo/tasks/verifier.h"

#include <algorithm>
#include <functional>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/tasks/answers.h"
#include "octavo/tasks/command_verifier.h"
#include "octavo/tasks/expression.h"
#include "octavo/tasks/pattern.h"

namespace octavo {
namespace {

// A rule is a function of completion and answer; `usable` says what is wrong with an answer, "" for nothing.
struct Rule {
  std::function<bool(const std::string& completion, const std::string& answer)> right;
  std::function<std::string(const std::string& answer)> usable;
};

class RuleVerifier : public Verifier {
 public:
  RuleVerifier(std::string name, Rule rule) : name_(std::move(name)), rule_(std::move(rule)) {}

  std::vector<Judgement> judge(std::span<const Completion> completions) override {
    std::vector<Judgement> judgements;
    judgements.reserve(completions.size());
    for (const Completion& c : completions) {
      try {
        const bool right = rule_.right(c.text, c.sample->answer);
        judgements.push_back({right ? 1.0F : 0.0F, right});
      } catch (const Error& error) {
        fail("{}: sample {}: {}", name_, c.sample->id, error.what());
      }
    }
    return judgements;
  }

  void check(const TaskSample& sample) const override {
    const std::string wrong = rule_.usable(sample.answer);
    if (!wrong.empty())
      fail("{}: the answer '{}' {}, which {} needs", sample.id, printable(sample.answer), wrong, name_);
  }

 private:
  std::string name_;
  Rule rule_;
};

std::string not_empty(const std::string& answer) { return trimmed(answer).empty() ? "is empty" : ""; }

Rule exact_rule() {
  return {[](const std::string& c, const std::string& a) { return trimmed(c) == trimmed(a); }, not_empty};
}

Rule number_rule() {
  return {[](const std::string& c, const std::string& a) {
            const auto number = last_number(c);
            return number && number == last_number(a);
          },
          [](const std::string& a) { return last_number(a) ? "" : "has no number"; }};
}

Rule boxed_rule() {
  return {[](const std::string& c, const std::string& a) {
            const auto boxed = last_boxed(c);
            return boxed && same_answer(*boxed, last_boxed(a).value_or(a));
          },
          not_empty};
}

Rule regex_rule(const std::string& text, const std::string& where) {
  return {[pattern = Pattern(text, where + ".pattern")](const std::string& c, const std::string& a) {
            const auto caught = pattern.last_catch(c);
            return caught && same_answer(*caught, a);
          },
          not_empty};
}

Rule choice_rule() {
  return {[](const std::string& c, const std::string& a) {
            const auto letter = chosen_letter(c);
            return letter && letter == chosen_letter(a);
          },
          [](const std::string& a) { return chosen_letter(a) ? "" : "is not a letter from A to J"; }};
}

std::string_view countdown_expression(std::string_view text) {
  constexpr std::string_view kOpen = "<answer>";
  const std::size_t close = text.rfind("</answer>");
  const std::size_t open = close == std::string_view::npos ? close : text.rfind(kOpen, close);
  std::string_view part;
  if (open != std::string_view::npos) {
    part = text.substr(open + kOpen.size(), close - open - kOpen.size());
  } else if (const auto boxed = last_boxed(text)) {
    part = *boxed;
  } else {
    part = trimmed(text);
    part = part.substr(part.rfind('\n') + 1);  // npos + 1 is 0
  }
  return trimmed(part.substr(0, part.find('=')));
}

Rule countdown_rule() {
  return {[](const std::string& c, const std::string& a) {
            auto given = parse_expression(countdown_expression(c));
            auto right = parse_expression(a);
            if (!given || !right || !given->value || given->value != right->value) return false;
            std::sort(given->numbers.begin(), given->numbers.end());
            std::sort(right->numbers.begin(), right->numbers.end());
            return given->numbers == right->numbers;
          },
          [](const std::string& a) {
            const auto right = parse_expression(a);
            return right && right->value ? "" : "is not an expression of numbers, + - * / and parentheses";
          }};
}

}  // namespace

std::unique_ptr<Verifier> make_verifier(const std::string& name, const EnvConfig& config) {
  const std::string where = "env." + name;
  const auto rule = [&](Rule r) {
    return std::make_unique<RuleVerifier>("verifier " + config.verifier + " (" + where + ")", std::move(r));
  };
  if (config.verifier == "exact") return rule(exact_rule());
  if (config.verifier == "number") return rule(number_rule());
  if (config.verifier == "boxed") return rule(boxed_rule());
  if (config.verifier == "regex") return rule(regex_rule(config.pattern, where));
  if (config.verifier == "choice") return rule(choice_rule());
  if (config.verifier == "countdown") return rule(countdown_rule());
  if (config.verifier == "command") return make_command_verifier(name, config);
  fail("{}.verifier: there is no verifier '{}'", where, config.verifier);
}

}  // namespace octavo
