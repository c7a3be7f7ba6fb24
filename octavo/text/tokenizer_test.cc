#include "octavo/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "octavo/base/error.h"
#include "octavo/text/detokenizer.h"
#include "octavo/text/test_tokenizer.h"
#include "octavo/text/unicode.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Ids = std::vector<std::int32_t>;

nlohmann::json golden(const std::string& name) {
  std::ifstream file(std::string(OCTAVO_SOURCE_DIR "/octavo/text/testdata/") + name + ".json");
  return nlohmann::json::parse(file);
}

Tokenizer tokenizer_of(const nlohmann::json& data) {
  return Tokenizer::from_json(data.at("tokenizer").dump(), "golden");
}

// What python/tools/tokenizer_reference.py recorded of Hugging Face `tokenizers`, one file for each kind of
// tokenizer.
class Golden : public ::testing::TestWithParam<const char*> {
 protected:
  nlohmann::json data = golden(GetParam());
  Tokenizer tokenizer = tokenizer_of(data);
};

TEST_P(Golden, EncodesAsHuggingFace) {
  ASSERT_GE(data.at("encode").size(), 60U);
  for (const auto& one : data.at("encode")) {
    const std::string text = one.at("text");
    const Ids ids = one.at("ids");
    EXPECT_EQ(tokenizer.encode(text), ids) << one.at("text");
    EXPECT_EQ(tokenizer.encode(text, false), one.value("plain_ids", ids)) << one.at("text");
  }
}

TEST_P(Golden, DecodesAsHuggingFace) {
  ASSERT_GE(data.at("decode").size(), 20U);
  for (const auto& one : data.at("decode")) {
    const Ids ids = one.at("ids");
    const std::string text = one.at("text");
    EXPECT_EQ(tokenizer.decode(ids), text) << one.at("ids");
    EXPECT_EQ(tokenizer.decode(ids, true), one.value("skipped", text)) << one.at("ids");
  }
}

TEST_P(Golden, StreamsWholeCharactersThatAddUpToTheDecodedText) {
  for (const auto& one : data.at("decode"))
    for (const bool skip : {false, true}) {
      StreamingDetokenizer stream(tokenizer, skip);
      const Ids ids = one.at("ids");
      std::string text;
      for (const auto id : ids) {
        const std::string piece = stream.push(id);
        EXPECT_NO_THROW(require_utf8(piece, "a piece"));
        text += piece;
      }
      text += stream.finish();
      EXPECT_EQ(text, skip ? one.value("skipped", one.at("text")) : one.at("text"));
    }
}

INSTANTIATE_TEST_SUITE_P(Kinds, Golden,
                         ::testing::Values("gpt2", "smollm2", "llama3", "qwen2", "flags", "prefix_space",
                                           "inverted", "few_bytes", "few_bytes_fused", "dropped_bytes",
                                           "llama2", "llama2_holes"),
                         [](const auto& test) { return std::string(test.param); });

TEST(Tokenizer, RefusesInvalidUtf8NamingTheByte) {
  const Tokenizer tokenizer = tokenizer_of(golden("gpt2"));
  for (const std::string bad : {"\xFF", "\x80", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE4\xBD"}) {
    try {
      tokenizer.encode("caf\xC3\xA9" + bad);
      FAIL() << "accepted invalid bytes";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("not valid UTF-8 at byte 5"));
    }
  }
}

TEST(Tokenizer, MergesInOrderOfRankFromTheLeft) {
  const Tokenizer tokenizer = Tokenizer::from_json(small_tokenizer().dump(), "small");
  // Merges: a a, aa b, b b. "aaab": the leftmost "aa" wins, and the "b" cannot reach it.
  EXPECT_THAT(tokenizer.encode("aaab"), ElementsAre(256, 97, 98));
  EXPECT_THAT(tokenizer.encode("aabbb"), ElementsAre(257, 258));
}

TEST(Tokenizer, TellsWhatATokenIs) {
  const Tokenizer tokenizer = Tokenizer::from_json(small_tokenizer().dump(), "small");
  EXPECT_EQ(tokenizer.vocab_size(), 261);
  EXPECT_EQ(tokenizer.token_bytes(257), "aab");
  EXPECT_EQ(tokenizer.token_bytes(0xE9), "\xE9");
  EXPECT_EQ(tokenizer.token_bytes(259), "<end>");
  EXPECT_TRUE(tokenizer.is_special(259));
  EXPECT_FALSE(tokenizer.is_special(260));
  EXPECT_FALSE(tokenizer.is_special(-1));
  EXPECT_EQ(tokenizer.token_to_id("aab"), 257);
  EXPECT_EQ(tokenizer.token_to_id("<tool>"), 260);
  EXPECT_EQ(tokenizer.token_to_id("absent"), std::nullopt);
  EXPECT_THROW(tokenizer.token_bytes(261), Error);
  EXPECT_THROW(tokenizer.token_bytes(-1), Error);
}

TEST(Tokenizer, SpecialTokensInTextNeedNoPostProcessor) {
  const Tokenizer tokenizer = Tokenizer::from_json(small_tokenizer().dump(), "small");
  EXPECT_THAT(tokenizer.encode("aa<end>a<tool>", false), ElementsAre(256, 259, 97, 260));
  EXPECT_EQ(tokenizer.decode(Ids{256, 259, 97, 260}), "aa<end>a<tool>");
  EXPECT_EQ(tokenizer.decode(Ids{256, 259, 97, 260}, true), "aaa<tool>");
}

// The cases that a random text seldom holds; the ids are Hugging Face's.
TEST(Tokenizer, AddedTokensDoNotOverlap) {
  nlohmann::json data = small_tokenizer();
  auto& added = data["added_tokens"];
  const auto add = [&](const char* content, std::initializer_list<const char*> flags) {
    nlohmann::json token = added[1];
    token["id"] = 259 + added.size();
    token["content"] = content;
    for (const char* flag : flags) token[flag] = true;
    added.push_back(token);
  };
  add("xyx", {});                 // 261
  add("xz", {});                  // 262
  add("wordy", {"single_word"});  // 263
  add("word", {});                // 264
  add("<r>", {"rstrip"});         // 265
  add("\n", {});                  // 266
  const Tokenizer tokenizer = Tokenizer::from_json(data.dump(), "overlap");
  EXPECT_THAT(tokenizer.encode("xyxz"), ElementsAre(261, 'z'));
  EXPECT_THAT(tokenizer.encode("wordy"), ElementsAre(263));
  // The longer token is found first and discarded; the shorter is not looked for in its place.
  EXPECT_THAT(tokenizer.encode("wordyz"), ElementsAre('w', 'o', 'r', 'd', 'y', 'z'));
  EXPECT_THAT(tokenizer.encode("wordz"), ElementsAre(264, 'z'));
  // The line ends that <r> swallows are tokens all the same, and so is what stands between them.
  EXPECT_THAT(tokenizer.encode("<r> \n \nz"), ElementsAre(265, 266, ' ', 266, 'z'));
}

// Quadratic merging or matching would take hours here and run into the test's time limit.
TEST(Tokenizer, HostileLengthsTakeLinearTime) {
  for (const char* name : {"gpt2", "smollm2", "llama3", "qwen2", "llama2"}) {
    const Tokenizer tokenizer = tokenizer_of(golden(name));
    for (const std::string unit :
         {"a", "ab", " ", "\n", " \n", "'", "1", "\xE4\xBD\xA0", "e\xCC\x81", "<|", "\xCC\x81"}) {
      std::string text;
      while (text.size() < (1U << 20)) text += unit;
      const Ids ids = tokenizer.encode(text, false);
      EXPECT_FALSE(ids.empty());
      if (std::string_view(name) != "qwen2") {  // which composes characters
        EXPECT_EQ(tokenizer.decode(ids), text.substr(0, tokenizer.decode(ids).size())) << name << ' ' << unit;
      }
    }
  }
}

TEST(Tokenizer, ThreadsShareOne) {
  const nlohmann::json data = golden("llama3");
  const Tokenizer tokenizer = tokenizer_of(data);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (std::size_t t = 0; t < wrong.size(); ++t)
    threads.emplace_back([&, t] {
      for (const auto& one : data.at("encode"))
        if (tokenizer.encode(one.at("text").get<std::string>()) != one.at("ids").get<Ids>()) ++wrong[t];
    });
  for (auto& thread : threads) thread.join();
  EXPECT_THAT(wrong, ElementsAre(0, 0, 0, 0));
}

TEST(Tokenizer, ReadsFilesAndNamesThoseItCannotRead) {
  const auto path = std::filesystem::path(::testing::TempDir()) / "octavo_tokenizer.json";
  std::ofstream(path) << small_tokenizer().dump();
  EXPECT_THAT(Tokenizer::from_file(path).encode("aa"), ElementsAre(256));
  std::filesystem::remove(path);
  for (const std::string& bad : {path.string(), ::testing::TempDir()}) {
    try {
      Tokenizer::from_file(bad);
      FAIL() << "read " << bad;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(bad));
    }
  }
}

}  // namespace
}  // namespace octavo
