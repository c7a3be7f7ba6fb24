#include "octavo/tasks/verifier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "octavo/base/error.h"
#include "octavo/checkpoint/test_folder.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

bool right(const EnvConfig& env, const std::string& completion, const std::string& answer) {
  const TaskSample sample{.id = "s", .answer = answer};
  const auto verifier = make_verifier("math", env);
  verifier->check(sample);
  const Completion c{.sample = &sample, .text = completion};
  const Judgement j = verifier->judge({&c, 1}).at(0);
  EXPECT_EQ(j.reward, j.correct ? 1.0F : 0.0F);
  return j.correct;
}

std::string refused_answer(const EnvConfig& env, const std::string& answer) {
  return message_of<Error>([&] { make_verifier("math", env)->check({.id = "d:3", .answer = answer}); });
}

TEST(Verifier, Exact) {
  const EnvConfig env{.verifier = "exact"};
  EXPECT_TRUE(right(env, " yes\n", "yes"));
  EXPECT_FALSE(right(env, "Yes", "yes"));
  EXPECT_FALSE(right(env, "", "yes"));
  EXPECT_THAT(refused_answer(env, " "), HasSubstr("d:3: the answer ' ' is empty"));
}

TEST(Verifier, Number) {
  const EnvConfig env{.verifier = "number"};
  EXPECT_TRUE(right(env, "17 + 25 = 42.", "42"));
  EXPECT_TRUE(right(env, "1,042.0", "some text #### 1042"));
  EXPECT_FALSE(right(env, "42 or 43", "42"));
  EXPECT_FALSE(right(env, "I do not know", "42"));
  EXPECT_THAT(refused_answer(env, "x"), HasSubstr("has no number, which verifier number (env.math) needs"));
}

TEST(Verifier, Boxed) {
  const EnvConfig env{.verifier = "boxed"};
  EXPECT_TRUE(right(env, "thus \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"));
  EXPECT_TRUE(right(env, "\\boxed{1,000}", "so \\boxed{1000}"));
  EXPECT_FALSE(right(env, "\\boxed{1} then \\boxed{2}", "1"));
  EXPECT_FALSE(right(env, "1", "1"));
}

TEST(Verifier, Regex) {
  const EnvConfig env{.verifier = "regex", .pattern = "####\\s*(\\S+)"};
  EXPECT_TRUE(right(env, "#### 3 no #### 42", "42"));
  EXPECT_FALSE(right(env, "42", "42"));
  EXPECT_THAT(message_of<Error>([] { make_verifier("math", {.verifier = "regex", .pattern = "(a"}); }),
              HasSubstr("env.math.pattern: '(a' is no regular expression"));
  // A pattern that would take for ever names itself and the sample.
  const TaskSample sample{.id = "d:7", .answer = "x"};
  const Completion c{.sample = &sample, .text = std::string(64, 'a') + "!"};
  const auto slow = make_verifier("math", {.verifier = "regex", .pattern = "(a+)+$"});
  EXPECT_THAT(message_of<Error>([&] {
                slow->judge({&c, 1});
              }),
              HasSubstr("verifier regex (env.math): sample d:7"));
}

TEST(Verifier, Choice) {
  const EnvConfig env{.verifier = "choice"};
  EXPECT_TRUE(right(env, "The answer is (B).", "B"));
  EXPECT_TRUE(right(env, "B", "(B)"));
  EXPECT_FALSE(right(env, "(A) or (C)", "A"));
  EXPECT_THAT(refused_answer(env, "yes"), HasSubstr("is not a letter from A to J"));
}

TEST(Verifier, Countdown) {
  const EnvConfig env{.verifier = "countdown"};
  EXPECT_TRUE(right(env, "(25 - 3) * 2", "2 * (25 - 3)"));
  EXPECT_TRUE(right(env, "I try\n<answer> 25*2 - 3*2 + 2 - 2</answer>", "25*2 - 3*2 + 2 - 2"));
  EXPECT_TRUE(right(env, "2 × 22 wrong\n25 × 2 - 3 = 47", "25 * 2 - 3"));
  EXPECT_TRUE(right(env, "\\boxed{25*2-3}", "25 * 2 - 3"));
  EXPECT_FALSE(right(env, "44", "2 * (25 - 3)"));  // not the numbers
  EXPECT_FALSE(right(env, "25 + 25 - 3 - 3", "2 * (25 - 3)"));
  EXPECT_FALSE(right(env, "2 * 25 - 3", "2 * (25 - 3)"));  // not the value
  EXPECT_FALSE(right(env, "2 * (25 - 3", "2 * (25 - 3)"));
  EXPECT_THAT(refused_answer(env, "1 / 0"), HasSubstr("is not an expression"));
}

// --- the external process ---

class CommandVerifierTest : public testing::Test {
 protected:
  // `body` sees the question as `q` and the process's count of questions as `n`.
  EnvConfig script(const std::string& body, double timeout_s = 20, std::int64_t workers = 1) {
    const std::string path =
        folder_.write("v.py",
                      "import json, os, sys, time\n"
                      "n = 0\n"
                      "for line in sys.stdin:\n"
                      "    q = json.loads(line)\n"
                      "    n += 1\n"
                      "    def say(**a): print(json.dumps({'id': q['id'], **a}), flush=True)\n" +
                          body);
    return {
        .verifier = "command", .command = {"python3", path}, .timeout_s = timeout_s, .num_workers = workers};
  }

  std::vector<Completion> completions(std::size_t count) {
    samples_.resize(count);
    std::vector<Completion> result;
    for (std::size_t i = 0; i < count; ++i) {
      samples_[i] = {.id = "d:" + std::to_string(i),
                     .messages = {{"user", "say " + std::to_string(i)}},
                     .answer = std::to_string(i),
                     .line = "{\"extra\": " + std::to_string(i * 10) + "}"};
      result.push_back({&samples_[i], "c" + std::to_string(i), i % 2 == 1});
    }
    return result;
  }

  std::string error_of(const EnvConfig& env, std::size_t count = 3) {
    const auto verifier = make_verifier("gym", env);
    const auto given = completions(count);
    return message_of<Error>([&] { verifier->judge(given); });
  }

  TestFolder folder_;
  std::vector<TaskSample> samples_;
};

TEST_F(CommandVerifierTest, GivesTheProcessAllAndTakesItsJudgement) {
  const auto verifier =
      make_verifier("gym", script("    assert q['prompt'][0]['content'] == 'say ' + q['answer'] and "
                                  "q['completion'] == 'c' + q['answer']\n"
                                  "    if n % 2: say(reward=q['line']['extra'] / 100)\n"
                                  "    else: say(reward=1.5 if q['truncated'] else 0, correct=False)\n"));
  for (int step = 0; step < 2; ++step) {  // the process stays
    const auto judgements = verifier->judge(completions(4));
    std::vector<float> rewards;
    for (const Judgement& j : judgements) {
      rewards.push_back(j.reward);
      EXPECT_FALSE(j.correct);
    }
    EXPECT_THAT(rewards, ElementsAre(0.0F, 1.5F, 0.2F, 1.5F));
  }
}

TEST_F(CommandVerifierTest, JudgesInParallelInOrder) {
  const auto verifier = make_verifier(
      "gym", script("    time.sleep(0.01); say(reward=int(q['answer']), who=os.getpid())\n", 20, 3));
  const auto judgements = verifier->judge(completions(30));
  for (std::size_t i = 0; i < judgements.size(); ++i) {
    EXPECT_EQ(judgements[i].reward, static_cast<float>(i));
    EXPECT_EQ(judgements[i].correct, i >= 1);
  }
}

TEST_F(CommandVerifierTest, NamesVerifierAndSampleWhenItCrashes) {
  const std::string error = error_of(script("    say(reward=1) if n == 1 else sys.exit('no more')\n"));
  EXPECT_THAT(
      error,
      HasSubstr(
          "verifier python3 (env.gym): sample d:1: it ended with exit code 1; its last words: no more"));
  EXPECT_THAT(error_of(script("    os.kill(os.getpid(), 11)\n")),
              HasSubstr("sample d:0: it was ended by signal 11"));
}

TEST_F(CommandVerifierTest, NamesVerifierAndSampleWhenItHangs) {
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THAT(error_of(script("    say(reward=1) if n < 3 else time.sleep(600)\n", 1.5)),
              HasSubstr("sample d:2: no answer within 1.5 s"));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));  // killed, not waited for
}

TEST_F(CommandVerifierTest, NamesVerifierAndSampleWhenItTalksNonsense) {
  EXPECT_THAT(error_of(script("    print('hello', flush=True)\n")),
              HasSubstr("sample d:0: its answer is not JSON: 'hello'"));
  EXPECT_THAT(error_of(script("    print('[1]', flush=True)\n")), HasSubstr("is not an object"));
  EXPECT_THAT(error_of(script("    say(reward=1, id=77)\n")), HasSubstr("sample d:0"));
  EXPECT_THAT(error_of(script("    print('{\"id\": 99, \"reward\": 1}', flush=True)\n")),
              HasSubstr("the question's id"));
  EXPECT_THAT(error_of(script("    say(score=1)\n")), HasSubstr("no number `reward`"));
  EXPECT_THAT(error_of(script("    say(reward=1e300)\n")), HasSubstr("not finite"));
  EXPECT_THAT(error_of(script("    say(reward=1, correct='yes')\n")),
              HasSubstr("`correct` that is no boolean"));
  EXPECT_THAT(error_of(script("    sys.stdout.write('x' * 3000000); sys.stdout.flush(); time.sleep(600)\n")),
              HasSubstr("longer than 1048576 bytes"));
  // Talks twice: the second answer is taken for the next question's, and is not.
  EXPECT_THAT(error_of(script("    say(reward=1); say(reward=1)\n")), HasSubstr("sample d:1"));
}

TEST_F(CommandVerifierTest, NamesTheProgramThatIsNotThere) {
  const EnvConfig env{.verifier = "command", .command = {"/nowhere/verifier"}};
  EXPECT_THAT(message_of<Error>([&] { make_verifier("gym", env); }),
              HasSubstr("verifier /nowhere/verifier (env.gym): cannot start '/nowhere/verifier'"));
}

TEST_F(CommandVerifierTest, BeginsAnewAfterAnError) {
  const std::string flag = folder_.file("failed");
  const auto verifier =
      make_verifier("gym", script("    if not os.path.exists('" + flag + "'): open('" + flag +
                                  "', 'w').close(); sys.exit(3)\n"
                                  "    say(reward=1)\n"));
  const auto given = completions(2);
  EXPECT_THAT(message_of<Error>([&] { verifier->judge(given); }), HasSubstr("exit code 3"));
  EXPECT_TRUE(verifier->judge(given)[1].correct);
}

TEST_F(CommandVerifierTest, TakesLongQuestionsAndMuchTalkOnStandardError) {
  const auto verifier = make_verifier(
      "gym",
      script("    sys.stderr.write('x' * 300000); sys.stderr.flush(); say(reward=len(q['completion']))\n"));
  auto given = completions(1);
  given[0].text = std::string(1'000'000, 'y');
  EXPECT_EQ(verifier->judge(given)[0].reward, 1e6F);
}

}  // namespace
}  // namespace octavo
