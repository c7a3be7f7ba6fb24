// From a sample's messages to the token ids that a rollout starts from.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "octavo/text/chat_template.h"
#include "octavo/text/tokenizer.h"

namespace octavo {

struct Prompt {
  std::string text;
  std::vector<std::int32_t> ids;
};

// The model's chat template, then its tokenizer. A template writes its special tokens itself; a model without
// one gets those that its tokenizer puts around any text.
class PromptEncoder {
 public:
  PromptEncoder(Tokenizer tokenizer, ChatTemplate chat_template)
      : tokenizer_(std::move(tokenizer)), template_(std::move(chat_template)) {}

  Prompt encode(std::span<const Message> messages) const {
    Prompt prompt{.text = template_.render(messages), .ids = {}};
    prompt.ids = tokenizer_.encode(prompt.text, template_.is_plain());
    return prompt;
  }

 private:
  Tokenizer tokenizer_;
  ChatTemplate template_;
};

}  // namespace octavo
