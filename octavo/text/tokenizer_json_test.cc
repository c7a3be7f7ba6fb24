// A tokenizer.json that Octavo does not read exactly as Hugging Face does is refused, and the message names
// the part.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "octavo/base/error.h"
#include "octavo/text/test_tokenizer.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

std::string refusal(const std::string& text) {
  try {
    Tokenizer::from_json(text, "some/tokenizer.json");
    return "accepted";
  } catch (const Error& error) {
    return error.what();
  }
}

std::string refusal(const char* pointer, const Json& value) {
  Json data = small_tokenizer();
  data[Json::json_pointer(pointer)] = value;
  return refusal(data.dump());
}

struct Case {
  const char* pointer;
  const char* value;    // JSON
  const char* message;  // part of
};

class Refusal : public ::testing::TestWithParam<Case> {};

TEST_P(Refusal, NamesFileAndPart) {
  const Case& one = GetParam();
  EXPECT_THAT(refusal(one.pointer, Json::parse(one.value)),
              AllOf(HasSubstr("some/tokenizer.json: "), HasSubstr(one.message), HasSubstr("; "),
                    Not(HasSubstr("\n"))));
}

INSTANTIATE_TEST_SUITE_P(
    Parts, Refusal,
    ::testing::Values(
        Case{"/version", R"("2.0")", "version \"2.0\""},
        Case{"/truncation", R"({"max_length": 512})", "'truncation' is set"},
        Case{"/padding", R"({"strategy": "BatchLongest"})", "'padding' is set"},
        Case{"/model/type", R"("WordPiece")", "model 'WordPiece'"},
        Case{"/model/type", R"("Unigram")", "model 'Unigram'"}, Case{"/model/dropout", "0.1", "dropout"},
        Case{"/model/continuing_subword_prefix", R"("##")", "continuing_subword_prefix"},
        Case{"/model/end_of_word_suffix", R"("</w>")", "end_of_word_suffix"},
        Case{"/model/vocab/aa", "-1", "gives \"aa\" the id -1"},
        Case{"/model/vocab/aa", "1.5", "gives \"aa\" the id 1.5"},
        Case{"/model/vocab/aa", "4294967552", "gives \"aa\" the id 4294967552"},
        Case{"/model/vocab/aa", "257", "the id 257 to both \"aa\" and \"aab\""},
        Case{"/model/vocab", "[1, 2]", "not laid out as a tokenizer.json"},
        Case{"/model/merges/1", R"("aa c d")", "model.merges[1] is neither"},
        Case{"/model/merges/1", R"(["aa"])", "model.merges[1] is neither"},
        Case{"/model/merges/1", R"("aa zz")", "needs the token \"zz\""},
        Case{"/model/merges/1", R"("b a")", "needs the token \"ba\""},
        Case{"/normalizer", R"({"type": "a\nb"})", R"(normalizer 'a\nb')"},
        Case{"/normalizer", R"({"type": "NFKC"})", "normalizer 'NFKC'"},
        Case{"/normalizer",
             R"({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]})",
             "normalizer 'Lowercase'"},
        Case{"/normalizer", R"({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"})",
             "Replace of a Regex"},
        Case{"/pre_tokenizer", R"({"type": "Metaspace"})", "pre_tokenizer 'Metaspace'"},
        Case{"/pre_tokenizer", R"({"type": "Whitespace"})", "pre_tokenizer 'Whitespace'"},
        Case{
            "/pre_tokenizer",
            R"({"type": "Split", "pattern": {"String": "a"}, "behavior": "MergedWithNext", "invert": false})",
            "behavior 'MergedWithNext'"},
        Case{"/pre_tokenizer",
             R"({"type": "Split", "pattern": {"Regex": "\\p{L"}, "behavior": "Isolated", "invert": false})",
             "regex"},
        Case{"/pre_tokenizer",
             R"({"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated", "invert": false})",
             "pre_tokenizer Split: broken regex"},
        Case{"/pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [
             {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
             {"type": "Digits", "individual_digits": true}]})",
             "'Digits' after ByteLevel"},
        Case{"/post_processor", R"({"type": "BertProcessing"})", "post_processor 'BertProcessing'"},
        Case{"/post_processor", R"({"type": "TemplateProcessing", "single": [], "special_tokens": {}})",
             "single without the sequence A"},
        Case{"/decoder", "null", "decoder 'null'"},
        Case{"/decoder", R"({"type": "WordPiece"})", "decoder 'WordPiece'"},
        Case{"/decoder", R"({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]})",
             "decoder 'ByteFallback in this place'"},
        Case{"/decoder", R"({"type": "Sequence", "decoders": []})", "Sequence without Fuse"},
        Case{"/added_tokens/0/id", "300", "gives \"<end>\" the id 300 where Hugging Face would give it 259"},
        Case{"/added_tokens/1/content", R"("<end>")", "holds \"<end>\" twice"},
        Case{"/added_tokens/1/content", R"("")", "empty content"},
        Case{"/added_tokens/0/lstrip", R"("yes")", "not laid out as a tokenizer.json"}));

TEST(TokenizerJson, RefusesWhatIsNotATokenizer) {
  EXPECT_THAT(refusal(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal("{\"model\": "), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal("[]"), HasSubstr("the top level is no object"));
  EXPECT_THAT(refusal("{}"), HasSubstr("not laid out as a tokenizer.json"));
  EXPECT_THAT(refusal("{\"a\": \"\xFF\"}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal(std::string(1 << 20, '[')), HasSubstr("nested deeper"));
  std::string nested = "null";
  for (int i = 0; i < 50; ++i) nested = R"({"type": "Sequence", "normalizers": [)" + nested + "]}";
  EXPECT_THAT(refusal("/normalizer", Json::parse(nested)), HasSubstr("nested deeper"));
}

TEST(TokenizerJson, ReadsMergesInBothSpellings) {
  Json data = small_tokenizer();
  data["model"]["merges"] = Json::parse(R"([["a", "a"], ["aa", "b"], ["b", "b"]])");
  const Tokenizer pairs = Tokenizer::from_json(data.dump(), "pairs");
  EXPECT_THAT(pairs.encode("aabbb"), ElementsAre(257, 258));
  data["model"]["merges"] = {"#version: 0.2", "a a", "aa b", "b b"};
  EXPECT_THAT(Tokenizer::from_json(data.dump(), "strings").encode("aabbb"), ElementsAre(257, 258));
}

TEST(TokenizerJson, TemplatesNest) {
  Json data = small_tokenizer();
  const auto around = [](int before, int after) {
    return Json{{"type", "TemplateProcessing"},
                {"single",
                 {{{"SpecialToken", {{"id", "x"}, {"type_id", 0}}}},
                  {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
                  {{"SpecialToken", {{"id", "y"}, {"type_id", 0}}}}}},
                {"special_tokens", {{"x", {{"ids", {before}}}}, {"y", {{"ids", {after}}}}}}};
  };
  data["post_processor"] = {{"type", "Sequence"}, {"processors", {around(1, 2), around(3, 4)}}};
  const Tokenizer tokenizer = Tokenizer::from_json(data.dump(), "nested");
  EXPECT_THAT(tokenizer.encode("a"), ElementsAre(3, 1, 97, 2, 4));
  EXPECT_THAT(tokenizer.encode("a", false), ElementsAre(97));
  EXPECT_THAT(tokenizer.encode(""), ElementsAre(3, 1, 2, 4));
}

TEST(TokenizerJson, UnknownTokenThatIsMissingIsReportedWhenNeeded) {
  Json data = small_tokenizer();
  data["model"]["unk_token"] = "<unk>";
  data["model"]["vocab"].erase("z");
  data["added_tokens"] = Json::array();
  const Tokenizer tokenizer = Tokenizer::from_json(data.dump(), "file");
  EXPECT_THAT(tokenizer.encode("a"), ElementsAre(97));
  EXPECT_THAT([&] { tokenizer.encode("z"); },
              ::testing::ThrowsMessage<Error>(AllOf(HasSubstr("file: "), HasSubstr("unk_token \"<unk>\""))));
}

}  // namespace
}  // namespace octavo
