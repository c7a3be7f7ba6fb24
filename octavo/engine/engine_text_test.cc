// What the engine does with text: stop strings, bad words, streaming. The tokenizer knows single ASCII
// characters, so every text has one spelling.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "octavo/engine/engine_test_support.h"

namespace octavo {
namespace {

// Ids 0, 1, 2: special; 3 to 96: '!' to '~'; 97: space. Three ids of the model have no token.
std::shared_ptr<const Tokenizer> ascii_tokenizer() {
  nlohmann::json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}, {"\u0120", 97}};
  for (int c = '!'; c <= '~'; ++c) vocab[std::string(1, static_cast<char>(c))] = c - '!' + 3;
  nlohmann::json added = nlohmann::json::array();
  for (const auto* token : {"<unk>", "<s>", "</s>"})
    added.push_back({{"id", vocab[token]},
                     {"content", token},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  const nlohmann::json tokenizer = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder",
       {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", vocab},
        {"merges", nlohmann::json::array()}}}};
  return std::make_shared<const Tokenizer>(Tokenizer::from_json(tokenizer.dump(), "test"));
}

class EngineText : public testing::Test {
 protected:
  ThreadPool pool_{2};
  std::shared_ptr<const Tokenizer> tokenizer_ = ascii_tokenizer();
  Engine engine_{
      tokenizer_, make_cpu_ops(pool_, best_isa()), tiny_model("llama", Precision::kFP8, pool_), {}, pool_};

  // Characters of the tokens that have one.
  std::string spell(const std::vector<std::int32_t>& ids) const {
    std::string text;
    for (const auto id : ids)
      if (id >= 3 && id <= 97) text += id == 97 ? ' ' : static_cast<char>(id - 3 + '!');
    return text;
  }
};

TEST_F(EngineText, StreamsTheTextOfTheTokens) {
  Request request = long_request(200);
  request.sampling.n = 2;
  std::vector<std::string> streamed(2);
  const auto outputs = engine_.generate(
      {request}, [&](const Event& event) { streamed[static_cast<std::size_t>(event.index)] += event.text; });
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(outputs[i].text, spell(outputs[i].token_ids));  // specials and ids without a token have no text
    EXPECT_EQ(streamed[i], outputs[i].text);
    EXPECT_GT(outputs[i].text.size(), 150U);
  }
}

TEST_F(EngineText, EndsBeforeAStopStringAndNeverStreamsIt) {
  Request request = long_request(200);
  const std::string whole = engine_.generate({request})[0].text;
  const std::string stop = whole.substr(50, 3);
  request.sampling.stop = {"no such text", stop};
  std::string streamed;
  const auto output = engine_.generate({request}, [&](const Event& event) { streamed += event.text; })[0];
  EXPECT_EQ(output.finish_reason, FinishReason::kStop);
  EXPECT_EQ(output.finish_message, "stop string \"" + stop + "\"");
  EXPECT_EQ(output.text, whole.substr(0, whole.find(stop)));
  EXPECT_EQ(streamed, output.text);
  EXPECT_EQ(spell(output.token_ids), output.text + stop);  // all sampled tokens are there
}

TEST_F(EngineText, StopTokensAreNotInTheText) {
  Request request = long_request(200);
  const auto tokens = engine_.generate({request})[0].token_ids;
  request.sampling.stop_token_ids = {tokens[30]};
  const auto output = engine_.generate({request})[0];
  EXPECT_EQ(output.token_ids.back(), tokens[30]);
  EXPECT_EQ(output.text, spell({output.token_ids.begin(), output.token_ids.end() - 1}));
}

TEST_F(EngineText, BadWordsAreNeverProduced) {
  Request request = long_request(250);
  request.sampling.n = 4;
  std::string before;
  for (const auto& output : engine_.generate({request})) before += output.text + "\n";
  // Single characters, and the first two-character words that occur.
  request.sampling.bad_words = {before.substr(0, 1), before.substr(10, 1), before.substr(20, 2),
                                before.substr(40, 2)};
  for (const auto& output : engine_.generate({request}))
    for (const auto& word : request.sampling.bad_words)
      EXPECT_EQ(output.text.find(word), std::string::npos) << word;
}

}  // namespace
}  // namespace octavo
