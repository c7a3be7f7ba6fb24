#include "octavo/tasks/generated_task.h"

#include <algorithm>
#include <charconv>

#include "octavo/base/error.h"
#include "octavo/base/nearest.h"
#include "octavo/tasks/draws.h"
#include "octavo/tasks/expression.h"

namespace octavo {
namespace {

// Takes options out of the map; what is left over at the end is not known.
class OptionReader {
 public:
  OptionReader(const TaskOptions& options, std::string where) : left_(options), where_(std::move(where)) {}

  std::int64_t number(const std::string& name, std::int64_t otherwise, std::int64_t low, std::int64_t high) {
    known_.push_back(name);
    const auto found = left_.find(name);
    if (found == left_.end()) return otherwise;
    const std::string text = found->second;
    left_.erase(found);
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < low || value > high)
      fail("{}.{}: '{}' is not a whole number from {} to {}", where_, name, text, low, high);
    return value;
  }

  std::string text(const std::string& name, const std::string& otherwise,
                   const std::vector<std::string>& must_have) {
    known_.push_back(name);
    const auto found = left_.find(name);
    if (found == left_.end()) return otherwise;
    std::string value = found->second;
    left_.erase(found);
    for (const std::string& part : must_have)
      if (value.find(part) == std::string::npos) fail("{}.{}: there is no {} in it", where_, name, part);
    return value;
  }

  void finish() const {
    if (!left_.empty())
      fail("{}.{}: there is no such option; the nearest is '{}'", where_, left_.begin()->first,
           nearest_name(left_.begin()->first, known_));
  }

 private:
  TaskOptions left_;
  std::string where_;
  std::vector<std::string> known_;
};

std::string replaced(std::string text, const std::string& what, const std::string& with) {
  const std::size_t at = text.find(what);
  return text.replace(at, what.size(), with);
}

class GeneratedTask : public DataSet {
 public:
  GeneratedTask(std::string name, std::uint64_t seed, std::string system_prompt)
      : name_(std::move(name)), seed_(seed), system_prompt_(std::move(system_prompt)) {}

  std::int64_t size() const override { return size_; }

  TaskSample at(std::int64_t index) const override {
    TaskSample sample{.id = name_ + ":" + std::to_string(index)};
    if (!system_prompt_.empty()) sample.messages.push_back({"system", system_prompt_});
    Draws draws(seed_, static_cast<std::uint64_t>(index));
    const auto [prompt, answer] = make(draws);
    sample.messages.push_back({"user", prompt});
    sample.answer = answer;
    return sample;
  }

 protected:
  struct Made {
    std::string prompt, answer;
  };
  virtual Made make(Draws& draws) const = 0;

  // The options that every task has; called last, by the constructors.
  void finish(OptionReader& options) {
    size_ = options.number("size", 10'000, 1, 100'000'000);
    options.finish();
  }

 private:
  std::string name_;
  std::uint64_t seed_;
  std::string system_prompt_;
  std::int64_t size_ = 0;
};

constexpr std::int64_t kGreatest = 1'000'000'000;

void check_range(std::int64_t low, std::int64_t high, const std::string& where) {
  if (low > high) fail("{}: min {} is above max {}", where, low, high);
}

class Addition : public GeneratedTask {
 public:
  Addition(const TaskOptions& given, std::uint64_t seed, const std::string& system_prompt,
           const std::string& where)
      : GeneratedTask("addition", seed, system_prompt) {
    OptionReader options(given, where);
    terms_ = options.number("terms", 2, 2, 100);
    min_ = options.number("min", 0, 0, kGreatest);
    max_ = options.number("max", 99, 0, kGreatest);
    prompt_ = options.text("prompt", "What is {}? Answer with the number only.", {"{}"});
    finish(options);
    check_range(min_, max_, where);
  }

 protected:
  Made make(Draws& draws) const override {
    std::string text;
    std::int64_t sum = 0;
    for (std::int64_t i = 0; i < terms_; ++i) {
      const std::int64_t term = draws.between(min_, max_);
      sum += term;
      text += (i == 0 ? "" : " + ") + std::to_string(term);
    }
    return {replaced(prompt_, "{}", text), std::to_string(sum)};
  }

 private:
  std::int64_t terms_, min_, max_;
  std::string prompt_;
};

class Countdown : public GeneratedTask {
 public:
  Countdown(const TaskOptions& given, std::uint64_t seed, const std::string& system_prompt,
            const std::string& where)
      : GeneratedTask("countdown", seed, system_prompt) {
    OptionReader options(given, where);
    numbers_ = options.number("numbers", 3, 2, 6);
    min_ = options.number("min", 1, 1, 10'000);
    max_ = options.number("max", 25, 1, 10'000);
    target_ = options.number("target", 100, 1, kGreatest);
    prompt_ =
        options.text("prompt",
                     "Using each of the numbers {numbers} exactly once, with + - * / and parentheses, write "
                     "an expression that equals {target}. Answer with the expression only.",
                     {"{numbers}", "{target}"});
    finish(options);
    check_range(min_, max_, where);
    // The difference of two numbers can always be made from them, unless they are equal; their quotient then.
    if (target_ < max_) fail("{}.target: must be at least max, {}", where, max_);
  }

 protected:
  // A random expression over all numbers; drawn again until its value is whole and in range. It ends: a sum
  // or difference of the first two, multiplied or divided away by the rest, is often enough in range; and the
  // bound on tries is far beyond what is seen.
  Made make(Draws& draws) const override {
    for (int tries = 0; tries < 100'000; ++tries) {
      std::vector<std::int64_t> numbers;
      std::vector<Expression> parts;
      for (std::int64_t i = 0; i < numbers_; ++i) {
        numbers.push_back(draws.between(min_, max_));
        parts.push_back(Expression::number(numbers.back()));
      }
      const auto take = [&] {
        const auto at = draws.below(static_cast<std::int64_t>(parts.size()));
        Expression part = parts[static_cast<std::size_t>(at)];
        parts.erase(parts.begin() + at);
        return part;
      };
      while (parts.size() > 1) {
        const Expression a = take();
        const Expression b = take();
        parts.push_back(combine(a, "+-*/"[draws.below(4)], b));
      }
      const std::optional<Rational>& value = parts[0].value;
      if (!value || value->denominator != 1 || value->numerator < 1 || value->numerator > target_) continue;
      std::string list;
      for (std::size_t i = 0; i < numbers.size(); ++i)
        list += (i == 0 ? "" : i + 1 == numbers.size() ? " and " : ", ") + std::to_string(numbers[i]);
      return {replaced(replaced(prompt_, "{numbers}", list), "{target}", std::to_string(value->numerator)),
              parts[0].text};
    }
    fail("countdown: 100000 draws of {} numbers from {} to {} made none up to {}; give a greater target",
         numbers_, min_, max_, target_);
  }

 private:
  std::int64_t numbers_, min_, max_, target_;
  std::string prompt_;
};

const std::vector<std::string> kTasks = {"addition", "countdown", "ResponseDataset"};

}  // namespace

std::unique_ptr<DataSet> make_generated_task(const std::string& name, const TaskOptions& options,
                                             std::uint64_t seed, const std::string& system_prompt,
                                             const std::string& where) {
  const std::string at = where + ".task_options";
  if (name == "addition") return std::make_unique<Addition>(options, seed, system_prompt, at);
  if (name == "countdown") return std::make_unique<Countdown>(options, seed, system_prompt, at);
  fail("{}.dataset_name: there is no task '{}'; the nearest is '{}' (ResponseDataset reads data_path)", where,
       name, nearest_name(name, kTasks));
}

std::string verifier_of_generated_task(const std::string& name) {
  return name == "countdown" ? "countdown" : "number";
}

}  // namespace octavo
