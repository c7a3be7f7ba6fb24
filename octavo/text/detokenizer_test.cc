#include "octavo/text/detokenizer.h"

#include <gtest/gtest.h>

#include "octavo/base/error.h"
#include "octavo/text/test_tokenizer.h"

namespace octavo {
namespace {

const std::string kBad = "\xEF\xBF\xBD";

Tokenizer byte_level() { return Tokenizer::from_json(small_tokenizer().dump(), "small"); }

// Llama-2's decoder: ids 0..255 are <0x00>..<0xFF>, 256 is "▁a", 257 "b", 258 "▁".
Tokenizer byte_fallback() {
  nlohmann::json data = small_tokenizer();
  nlohmann::json vocab = {{"\u2581a", 256}, {"b", 257}, {"\u2581", 258}};
  for (int byte = 0; byte < 256; ++byte) vocab[fmt::format("<0x{:02X}>", byte)] = byte;
  data["model"] = {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"\u2581 a"}}, {"byte_fallback", true}};
  data["model"]["vocab"]["a"] = 259;
  data["added_tokens"] = nlohmann::json::array();
  data["pre_tokenizer"] = nullptr;
  data["normalizer"] = nlohmann::json::parse(R"({"type": "Sequence", "normalizers": [
      {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]})");
  data["decoder"] = nlohmann::json::parse(R"({"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
      {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})");
  return Tokenizer::from_json(data.dump(), "fallback");
}

TEST(StreamingDetokenizer, HoldsACharacterBackUntilItIsWhole) {
  StreamingDetokenizer stream(byte_level());
  EXPECT_EQ(stream.push('x'), "x");
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push(0x9F), "");
  EXPECT_EQ(stream.push(0x98), "");
  EXPECT_EQ(stream.push(0x80), "\xF0\x9F\x98\x80");
  EXPECT_EQ(stream.finish(), "");
}

TEST(StreamingDetokenizer, ReleasesBrokenCharactersAsSoonAsTheyAreBroken) {
  StreamingDetokenizer stream(byte_level());
  EXPECT_EQ(stream.push(0xE4), "");
  EXPECT_EQ(stream.push('a'), kBad + "a");
  EXPECT_EQ(stream.push(0x80), kBad);
  EXPECT_EQ(stream.push(0xE4), "");
  EXPECT_EQ(stream.push(0xBD), "");
  EXPECT_EQ(stream.finish(), kBad);  // one for the whole unfinished character
  EXPECT_EQ(stream.push('b'), "b");  // as new
}

TEST(StreamingDetokenizer, SkipsSpecialTokensOnRequestAndUnknownIdsAlways) {
  StreamingDetokenizer skipping(byte_level(), true);
  EXPECT_EQ(skipping.push(259), "");
  EXPECT_EQ(skipping.push(260), "<tool>");
  EXPECT_EQ(skipping.push(100'000), "");
  StreamingDetokenizer keeping(byte_level(), false);
  EXPECT_EQ(keeping.push(259), "<end>");
  EXPECT_THROW(keeping.push(-1), Error);
}

TEST(StreamingDetokenizer, FallbackBytesAreOneTextOrNone) {
  StreamingDetokenizer stream(byte_fallback());
  EXPECT_EQ(stream.push(256), "a");  // the first space is stripped
  EXPECT_EQ(stream.push(256), " a");
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.push(0xA9), "");
  EXPECT_EQ(stream.push(257),
            "\xC3\xA9"
            "b");
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.push(0xA9), "");
  EXPECT_EQ(stream.push(0xFF), "");
  EXPECT_EQ(stream.push(258), kBad + kBad + kBad + " ");
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.finish(), kBad);
  EXPECT_EQ(stream.push(256), "a");  // as new
}

TEST(StreamingDetokenizer, OutlivesItsTokenizer) {
  auto tokenizer = std::make_unique<Tokenizer>(byte_level());
  StreamingDetokenizer stream(*tokenizer);
  tokenizer.reset();
  EXPECT_EQ(stream.push('x'), "x");
}

TEST(Tokenizer, ByteFallbackSpellsUnknownCharacters) {
  const Tokenizer tokenizer = byte_fallback();
  const std::vector<std::int32_t> ids = tokenizer.encode(
      "a \xC3\xA9"
      "b");
  EXPECT_EQ(ids, (std::vector<std::int32_t>{256, 258, 0xC3, 0xA9, 257}));
  EXPECT_EQ(tokenizer.decode(ids),
            "a \xC3\xA9"
            "b");
  EXPECT_EQ(tokenizer.token_bytes(0xC3), "\xC3");
}

}  // namespace
}  // namespace octavo
