// Messages to the text that a chat model was trained to answer.
//
// Hugging Face models carry their template as a Jinja program. No C++ library for Jinja is in Debian, and an
// interpreter of our own would be a language to keep; a policy needs one format only. So the formats are
// written out here, and a template is recognized by its whole text or refused.
#pragma once

#include <span>
#include <string>

namespace octavo {

struct Message {
  std::string role;  // system, user, assistant
  std::string content;
};

class ChatTemplate {
 public:
  enum class Format {
    kPlain,    // the contents one after another: models without a template
    kChatMl,   // <|im_start|>role\ncontent<|im_end|>\n, and <|im_start|>assistant\n
    kLlama3,   // BOS, <|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>; contents are trimmed
    kMistral,  // BOS, [INST] content [/INST]; no system messages
  };

  // Of the model folder's tokenizer_config.json. `name`: "default" recognizes its chat_template (or the file
  // chat_template.jinja beside it): SmolLM2's, plain ChatML, Llama 3's, Mistral 7B's; none is kPlain.
  // "chatml", "llama3", "mistral" and "plain" name the format instead. Error for a template that is not
  // known, saying how to name its format.
  static ChatTemplate from_folder(const std::string& folder, const std::string& name = "default");

  // The messages and the beginning of the assistant's next one. Error for messages that the format has no
  // place for (Mistral: other than user and assistant in turns).
  std::string render(std::span<const Message> messages) const;

  // The text has no special tokens of its own.
  bool is_plain() const { return format_ == Format::kPlain; }
  Format format() const { return format_; }

 private:
  Format format_ = Format::kPlain;
  std::string bos_;
  std::string eos_;             // Mistral: what ends an assistant's message
  std::string default_system_;  // ChatML: put first where the messages have no system's; empty: none
};

}  // namespace octavo
