// A tokenizer.json, and the same bytes as text and as ids for a tokenizer that is sound.
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz/check_error.h"
#include "octavo/base/error.h"
#include "octavo/text/detokenizer.h"
#include "octavo/text/test_tokenizer.h"
#include "octavo/text/tokenizer.h"
#include "octavo/text/unicode.h"

namespace {

using octavo::Tokenizer;

void encode_and_decode(const Tokenizer& tokenizer, std::string_view text) {
  const std::vector<std::int32_t> ids = tokenizer.encode(text);
  octavo::require_utf8(tokenizer.decode(ids), "decoded text");
}

// The input is ids: streamed and decoded text must be the same, and whole characters all the way.
void stream(const Tokenizer& tokenizer, std::string_view input) {
  std::vector<std::int32_t> ids;
  for (const char c : input) ids.push_back(static_cast<unsigned char>(c));
  octavo::StreamingDetokenizer detokenizer(tokenizer, false);
  std::string text;
  for (const std::int32_t id : ids) {
    const std::string piece = detokenizer.push(id);
    octavo::require_utf8(piece, "a streamed piece");
    text += piece;
  }
  text += detokenizer.finish();
  assert(text == tokenizer.decode(ids));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  static const Tokenizer small = Tokenizer::from_json(octavo::small_tokenizer().dump(), "small");
  stream(small, input);
  try {
    encode_and_decode(small, input);
  } catch (const octavo::Error&) {  // not UTF-8
  }
  octavo::check_error([&] {
    const Tokenizer tokenizer = Tokenizer::from_json(input, "input");
    encode_and_decode(tokenizer, "It's 2024, caf\u00e9 e\u0301 \u4f60\U0001f600\n\n  <end>");
    stream(tokenizer, input.substr(0, 64));
  });
  return 0;
}
