#include "octavo/text/detokenizer.h"

#include <utility>

#include "octavo/base/error.h"
#include "octavo/text/tokenizer_parts.h"
#include "octavo/text/unicode.h"

namespace octavo {
namespace {

// Moves the text at the start of `bytes` out, U+FFFD for what is not UTF-8. A character that may still be
// completed stays, unless this is the `last` call.
std::string take_text(std::string& bytes, bool last) {
  std::string text;
  std::size_t i = 0;
  while (i < bytes.size()) {
    const Utf8Step step = utf8_step(bytes, i);
    if (step.kind == Utf8Step::kTruncated && !last) break;
    if (step.kind == Utf8Step::kCharacter)
      text.append(bytes, i, step.length);
    else
      text += kReplacementCharacter;
    i += step.length;
  }
  bytes.erase(0, i);
  return text;
}

bool is_utf8(std::string_view bytes) {
  for (std::size_t i = 0; i < bytes.size();) {
    const Utf8Step step = utf8_step(bytes, i);
    if (step.kind != Utf8Step::kCharacter) return false;
    i += step.length;
  }
  return true;
}

// A run of fallback bytes is text as a whole or not at all: one U+FFFD for each byte, as in HF.
std::string take_fallback_run(std::string& bytes) {
  std::string run = std::exchange(bytes, {});
  if (is_utf8(run)) return run;
  std::string text;
  for (std::size_t i = 0; i < run.size(); ++i) text += kReplacementCharacter;
  return text;
}

}  // namespace

StreamingDetokenizer::StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(tokenizer),
      skip_special_tokens_(skip_special_tokens),
      to_strip_(tokenizer.parts().decoder.strip_count()) {}

std::string StreamingDetokenizer::push(std::int32_t id) {
  if (id < 0) fail("token id {} is negative; ids start at 0", id);
  if (id >= tokenizer_.vocab_size()) return {};
  const TokenizerParts& parts = tokenizer_.parts();
  const auto& token = parts.tokens[static_cast<std::size_t>(id)];
  if (!token.exists || (token.special && skip_special_tokens_)) return {};
  if (parts.decoder.byte_level() || token.meaning.is_byte) {
    pending_ += token.meaning.bytes;
    return parts.decoder.byte_level() ? take_text(pending_, false) : std::string();
  }
  return strip_start(take_fallback_run(pending_) + token.meaning.bytes);
}

std::string StreamingDetokenizer::finish() {
  const Decoder& decoder = tokenizer_.parts().decoder;
  std::string text =
      decoder.byte_level() ? take_text(pending_, true) : strip_start(take_fallback_run(pending_));
  to_strip_ = decoder.strip_count();
  return text;
}

std::string StreamingDetokenizer::strip_start(const std::string& text) {
  const std::string& strip = tokenizer_.parts().decoder.strip_text();
  std::size_t start = 0;
  while (to_strip_ > 0 && start < text.size()) {
    if (text.compare(start, strip.size(), strip) == 0) {
      start += strip.size();
      --to_strip_;
    } else {
      to_strip_ = 0;
    }
  }
  return text.substr(start);
}

}  // namespace octavo
