// Refits of a running engine: what is promised in docs/refit.md.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "octavo/checkpoint/test_folder.h"
#include "octavo/engine/engine_refit_test_support.h"

namespace octavo {
namespace {

using testing::Each;
using testing::HasSubstr;

class EngineRefit : public testing::Test {
 protected:
  ModelSpec spec_ = load_model_spec(tiny_folder("llama"));
  HostWeights first_{spec_, 1};
  HostWeights second_{spec_, 2};
  TinyEngine tiny_;
  Engine& engine_ = tiny_.engine;

  // What an engine answers that has never had other weights.
  std::vector<Output> fresh_answers(const HostWeights& weights) {
    TinyEngine fresh;
    refit(fresh.engine, weights, {.version = 1});
    return answers(fresh.engine);
  }
};

TEST_F(EngineRefit, WholeRefitsAnswerAsFreshEnginesDo) {
  refit(engine_, first_, {.version = 5});
  const auto with_first = answers(engine_);
  EXPECT_THAT(with_first[0].weight_versions, Each(5U));
  expect_equal(with_first, fresh_answers(first_));
  refit(engine_, second_, {.version = 6});
  const auto with_second = answers(engine_);
  EXPECT_THAT(with_second[0].weight_versions, Each(6U));
  expect_equal(with_second, fresh_answers(second_));
  EXPECT_NE(with_first[0].logprobs, with_second[0].logprobs);
  EXPECT_EQ(engine_.stats().weight_version, 6U);
}

TEST_F(EngineRefit, CommitListsAllThatIsWrongAndTheEngineRefusesUntilAWholeRefit) {
  const auto transaction = engine_.begin_refit({.version = 9});
  std::vector<NamedTensor> tensors = second_.views();
  const std::string wrong_shape = tensors[3].name;
  tensors[3].tensor.shape = {2, 2};
  const std::string not_finite = tensors[5].name;
  second_.at(not_finite).values[1].bits = 0x7fc0;
  const std::string missing = tensors.back().name;
  tensors.pop_back();
  for (const NamedTensor& named : tensors) transaction->put(named.name, named.tensor);
  transaction->put("model.layers.0.self_attn.z_proj.weight", tensors[0].tensor);
  transaction->put(tensors[0].name, tensors[0].tensor);
  const std::string message = message_of<Error>([&] { transaction->commit(); });
  EXPECT_THAT(message, HasSubstr("the refit to version 9 is refused"));
  EXPECT_THAT(message, HasSubstr("'" + wrong_shape + "' has shape [2, 2]"));
  EXPECT_THAT(message, HasSubstr("'" + not_finite + "' holds a value that is not finite at [0, 1]"));
  EXPECT_THAT(message, HasSubstr("'model.layers.0.self_attn.z_proj.weight' is unknown"));
  EXPECT_THAT(message, HasSubstr("'" + tensors[0].name + "' came twice"));
  EXPECT_THAT(message, HasSubstr("'" + missing + "' is missing"));
  EXPECT_FALSE(transaction->open());

  EXPECT_THAT(message_of<Error>([&] { answers(engine_); }), HasSubstr("is refused: '" + wrong_shape));
  EXPECT_THAT(message_of<Error>(
                  [&] { engine_.begin_refit({.version = 10, .expected = {missing}, .partial = true}); }),
              HasSubstr("a partial refit cannot bring the engine back"));
  refit(engine_, first_, {.version = 11});
  expect_equal(answers(engine_), fresh_answers(first_));
}

// Many tensors at once are looked at before the first is written.
TEST_F(EngineRefit, AWrongShapeAmongManyLeavesTheOldWeights) {
  const auto before = answers(engine_);
  std::vector<NamedTensor> tensors = second_.views();
  tensors.back().tensor.shape = {2, 2};
  const auto transaction = engine_.begin_refit({.version = 9});
  transaction->put(tensors);
  EXPECT_THAT(message_of<Error>([&] { transaction->commit(); }),
              HasSubstr("'" + tensors.back().name + "' has shape [2, 2]"));
  expect_equal(answers(engine_), before);
}

TEST_F(EngineRefit, NothingWrittenNothingLost) {
  const auto before = answers(engine_);
  engine_.begin_refit({.version = 2})->abort();
  engine_.begin_refit({.version = 3});  // ends without a commit
  {
    const auto transaction = engine_.begin_refit({.version = 4});
    transaction->put("nonsense", first_.tensors[0].view());
    transaction->put(first_.views());  // is only checked
    EXPECT_THAT(message_of<Error>([&] { transaction->commit(); }), HasSubstr("'nonsense' is unknown"));
  }
  expect_equal(answers(engine_), before);
  EXPECT_EQ(engine_.stats().weight_version, 0U);
}

TEST_F(EngineRefit, RequestsWaitWhileTheLiveWeightsAreWritten) {
  auto transaction = engine_.begin_refit({.version = 7});
  auto answered = std::async(std::launch::async, [&] { return answers(engine_); });
  EXPECT_TRUE(engine_.pause(PauseMode::kKeep));  // may come and go, and starts nothing
  engine_.resume();
  for (const HostWeights::Tensor& tensor : first_.tensors) {
    EXPECT_EQ(answered.wait_for(std::chrono::milliseconds(1)), std::future_status::timeout);
    transaction->put(tensor.name, tensor.view());
  }
  transaction->commit();
  expect_equal(answered.get(), fresh_answers(first_));
}

TEST_F(EngineRefit, AFailureEndsWhatIsInFlightWithTheReason) {
  auto transaction = engine_.begin_refit({.version = 7});
  auto answered = std::async(std::launch::async, [&] { return answers(engine_); });
  while (engine_.stats().waiting_requests < 3) std::this_thread::yield();
  transaction->put(first_.tensors[0].name, first_.tensors[0].view());
  transaction->abort("the trainer died");
  for (const Output& output : answered.get()) {
    EXPECT_EQ(output.finish_reason, FinishReason::kError);
    EXPECT_THAT(output.finish_message, HasSubstr("the refit to version 7 failed: the trainer died"));
  }
}

TEST_F(EngineRefit, OneAtATimeAndOverIsOver) {
  auto transaction = engine_.begin_refit({.version = 1});
  EXPECT_THAT(message_of<Error>([&] { engine_.begin_refit({.version = 2}); }),
              HasSubstr("another refit is open"));
  transaction->abort();
  EXPECT_THAT(message_of<Error>([&] { transaction->put("model.norm.weight", first_.tensors[0].view()); }),
              HasSubstr("is over"));
  EXPECT_THAT(message_of<Error>([&] { transaction->commit(); }), HasSubstr("is over"));
  transaction = engine_.begin_refit({.version = 3});
  engine_.shutdown();
  EXPECT_THAT(message_of<Error>([&] { transaction->put("model.norm.weight", first_.tensors[0].view()); }),
              HasSubstr("shut down"));
  EXPECT_THAT(message_of<Error>([&] { transaction->commit(); }), HasSubstr("shut down"));
}

TEST_F(EngineRefit, OptionsThatMakeNoSenseAreRefused) {
  EXPECT_THAT(message_of<Error>([&] { engine_.begin_refit({.partial = true}); }),
              HasSubstr("must name the tensors"));
  EXPECT_THAT(message_of<Error>([&] { engine_.begin_refit({.expected = {"model.norm.weight"}}); }),
              HasSubstr("does not expect tensor"));
  EXPECT_THAT(message_of<Error>([&] { engine_.begin_refit({.expected = {"x"}, .partial = true}); }),
              HasSubstr("'x' that the model does not have"));
  refit(engine_, first_, {.version = 1});  // none of them is left open
}

}  // namespace
}  // namespace octavo
