#include "octavo/tasks/data_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "octavo/base/error.h"
#include "octavo/checkpoint/test_folder.h"
#include "octavo/tasks/draws.h"
#include "octavo/tasks/expression.h"
#include "octavo/tasks/generated_task.h"
#include "octavo/tasks/verifier.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> ids(const std::vector<TaskSample>& samples) {
  std::vector<std::string> result;
  for (const TaskSample& s : samples) result.push_back(s.id);
  return result;
}

std::shared_ptr<const DataSet> addition(const TaskOptions& options, std::uint64_t seed = 1) {
  return make_generated_task("addition", options, seed, "", "data.train");
}

TEST(Draws, AreTheSameEverywhereAndEven) {
  Draws draws(1, 2);
  std::vector<std::int64_t> first;
  for (int i = 0; i < 6; ++i) first.push_back(draws.below(1000));
  // Fixed, so that a saved position means the same data in every version.
  EXPECT_THAT(first, ElementsAre(903, 717, 577, 867, 842, 304));
  std::vector<int> counts(10);
  for (int i = 0; i < 10'000; ++i)
    ++counts[static_cast<std::size_t>(Draws(3, static_cast<std::uint64_t>(i)).below(10))];
  for (const int count : counts) EXPECT_NEAR(count, 1000, 150);  // five standard deviations
  EXPECT_EQ(draws.between(7, 7), 7);
}

TEST(DataLoader, GivesEverySampleOncePerEpoch) {
  DataLoader loader(addition({{"size", "7"}}), true, 5);
  const std::vector<std::string> first = ids(loader.next(7));
  const std::vector<std::string> second = ids(loader.next(7));
  EXPECT_EQ(std::set(first.begin(), first.end()).size(), 7U);
  EXPECT_EQ(std::set(first.begin(), first.end()), std::set(second.begin(), second.end()));
  EXPECT_NE(first, second);
  EXPECT_EQ(loader.position(), (DataPosition{1, 7}));
  DataLoader other(addition({{"size", "7"}}), true, 6);
  EXPECT_NE(ids(other.next(7)), first);
  DataLoader straight(addition({{"size", "3"}}), false, 5);
  EXPECT_THAT(ids(straight.next(4)), ElementsAre("addition:0", "addition:1", "addition:2", "addition:0"));
}

TEST(DataLoader, GoesOnFromAnyPosition) {
  DataLoader whole(addition({{"size", "7"}}), true, 5);
  const std::vector<std::string> all = ids(whole.next(30));
  for (std::int64_t taken = 0; taken <= 20; ++taken) {
    DataLoader before(addition({{"size", "7"}}), true, 5);
    before.next(taken);
    DataLoader after(addition({{"size", "7"}}), true, 5);
    after.seek(before.position());
    const std::vector<std::string> rest = ids(after.next(10));
    EXPECT_TRUE(std::equal(rest.begin(), rest.end(), all.begin() + taken)) << taken;
  }
  EXPECT_THAT(message_of<Error>([&] { whole.seek({0, 8}); }), HasSubstr("the data has changed"));
}

TEST(Addition, MakesSumsInRange) {
  const auto data = addition({{"terms", "3"}, {"min", "5"}, {"max", "20"}, {"prompt", "Add {}!"}});
  std::set<std::string> prompts;
  for (std::int64_t i = 0; i < 200; ++i) {
    const TaskSample s = data->at(i);
    ASSERT_EQ(s.messages.size(), 1U);
    const std::string text = s.messages[0].content.substr(4, s.messages[0].content.size() - 5);
    const auto sum = parse_expression(text);
    ASSERT_TRUE(sum) << text;
    ASSERT_EQ(sum->numbers.size(), 3U);
    for (const std::int64_t n : sum->numbers) ASSERT_TRUE(n >= 5 && n <= 20);
    EXPECT_EQ(std::to_string(sum->value->numerator), s.answer);
    prompts.insert(text);
    EXPECT_EQ(data->at(i).messages[0].content, s.messages[0].content);
  }
  EXPECT_GT(prompts.size(), 150U);
  EXPECT_NE(addition({}, 1)->at(0).messages[0].content, addition({}, 2)->at(0).messages[0].content);
}

TEST(Countdown, MakesSolvableSamples) {
  const EnvConfig env{.verifier = "countdown"};
  const auto verifier = make_verifier("x", env);
  for (const char* numbers : {"2", "4", "6"}) {
    const auto data = make_generated_task("countdown", {{"numbers", numbers}}, 3, "", "data.train");
    for (std::int64_t i = 0; i < 100; ++i) {
      const TaskSample s = data->at(i);
      verifier->check(s);
      const Completion solved{.sample = &s, .text = "It is\n" + s.answer};
      ASSERT_TRUE(verifier->judge({&solved, 1})[0].correct) << s.answer;
      const auto answer = parse_expression(s.answer);
      ASSERT_TRUE(answer && answer->value);
      ASSERT_EQ(std::to_string(answer->numbers.size()), numbers);
      ASSERT_TRUE(answer->value->numerator >= 1 && answer->value->numerator <= 100);
      ASSERT_THAT(s.messages[0].content,
                  HasSubstr("equals " + std::to_string(answer->value->numerator) + "."));
    }
  }
}

TEST(GeneratedTask, RefusesWhatIsNotKnown) {
  const auto refusal = [](const std::string& name, const TaskOptions& options) {
    return message_of<Error>([&] { make_generated_task(name, options, 1, "", "data.train"); });
  };
  EXPECT_THAT(refusal("additon", {}), HasSubstr("nearest is 'addition'"));
  EXPECT_THAT(refusal("addition", {{"term", "3"}}), HasSubstr("data.train.task_options.term"));
  EXPECT_THAT(refusal("addition", {{"term", "3"}}), HasSubstr("'terms'"));
  EXPECT_THAT(refusal("addition", {{"max", "9x"}}), HasSubstr("'9x' is not a whole number"));
  EXPECT_THAT(refusal("addition", {{"min", "9"}, {"max", "8"}}), HasSubstr("min 9 is above max 8"));
  EXPECT_THAT(refusal("addition", {{"prompt", "Add!"}}), HasSubstr("no {} in it"));
  EXPECT_THAT(refusal("countdown", {{"target", "3"}}), HasSubstr("at least max"));
}

class JsonlTest : public testing::Test {
 protected:
  std::unique_ptr<DataSet> open(const std::string& lines, JsonlOptions options = {}) {
    options.path = folder_.write("data.jsonl", lines);
    return open_jsonl(options);
  }
  std::string error(const std::string& lines, const JsonlOptions& options = {}) {
    return message_of<Error>([&] { open(lines, options); });
  }
  TestFolder folder_;
};

TEST_F(JsonlTest, ReadsPromptsAndMessages) {
  const auto data = open(
      "{\"prompt\": \"a {} b\", \"answer\": 3}\n\n"
      "{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": "
      "\"u\"}], "
      "\"answer\": \"x\", \"more\": [1]}",
      {.prompt_text = "Q: {} A: {}", .system_prompt = "be"});
  ASSERT_EQ(data->size(), 2);
  const TaskSample first = data->at(0);
  EXPECT_THAT(first.id, testing::EndsWith("data.jsonl:1"));
  ASSERT_EQ(first.messages.size(), 2U);
  EXPECT_EQ(first.messages[0].content, "be");
  EXPECT_EQ(first.messages[1].content, "Q: a {} b A: a {} b");
  EXPECT_EQ(first.answer, "3");
  const TaskSample second = data->at(1);
  EXPECT_THAT(second.id, testing::EndsWith("data.jsonl:3"));
  ASSERT_EQ(second.messages.size(), 2U);
  EXPECT_EQ(second.messages[0].content, "s");
  EXPECT_THAT(second.line, HasSubstr("\"more\": [1]"));
}

TEST_F(JsonlTest, NamesTheLineThatIsWrong) {
  const std::string good = "{\"prompt\": \"p\", \"answer\": \"a\"}\n";
  EXPECT_THAT(error(good + "{\"prompt\": 3, \"answer\": \"a\"}"), HasSubstr("data.jsonl:2"));
  EXPECT_THAT(error(good + "{\"prompt\": \"p\"}"), HasSubstr("there is no 'answer'"));
  EXPECT_THAT(error(good + "{\"prompt\": \"p\", \"answer\": [1]}"), HasSubstr("must be a text or a number"));
  EXPECT_THAT(error(good + "[1]"), HasSubstr("must be an object"));
  EXPECT_THAT(error(good + "{"), HasSubstr("data.jsonl:2: not valid JSON"));
  EXPECT_THAT(error("{\"messages\": [], \"answer\": 1}"), HasSubstr("messages must be a list"));
  EXPECT_THAT(error("{\"messages\": [{\"role\": \"user\"}], \"answer\": 1}"), HasSubstr("message 0"));
  EXPECT_THAT(error("{\"messages\": [{\"role\": \"bot\", \"content\": \"\"}], \"answer\": 1}"),
              HasSubstr("'bot'"));
  EXPECT_THAT(error("{\"messages\": [{\"role\": \"assistant\", \"content\": \"\"}], \"answer\": 1}"),
              HasSubstr("must be the user's"));
  EXPECT_THAT(error("\n \n"), HasSubstr("there is no line"));
  EXPECT_EQ(error("{\"prompt\": \"p\"}", {.needs_answer = false}), "");
}

}  // namespace
}  // namespace octavo
