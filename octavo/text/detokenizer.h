// Token ids to text as they are generated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "octavo/text/tokenizer.h"

namespace octavo {

// All pushes and the finish together give what Tokenizer::decode gives for the same ids, and no piece ends
// inside a character. Shares the tokenizer's tables, so the Tokenizer itself may be moved or destroyed.
class StreamingDetokenizer {
 public:
  explicit StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special_tokens = true);

  std::string push(std::int32_t id);  // the text that is now certain; throws Error for a negative id
  std::string finish();               // what is left, incomplete bytes as U+FFFD; afterwards as new

 private:
  std::string take_pending();
  std::string strip_start(const std::string& text);

  Tokenizer tokenizer_;
  bool skip_special_tokens_;
  std::string pending_;       // bytes that are not yet certain text
  std::size_t to_strip_ = 0;  // how many of the decoder's strip_text() may still be dropped
};

}  // namespace octavo
