// Messages to the text that a chat model was trained to answer.
//
// Hugging Face models carry their template as a Jinja program. No C++ library for Jinja is in Debian, and an
// interpreter of our own would be a language to keep; a policy needs one format only. So the formats are
// written out here, and a template is recognized by its whole text, but for the default system message of
// ChatML ones, or refused.
#pragma once

#include <optional>
#include <span>
#include <string>

namespace octavo {

struct Message {
  std::string role;  // system, user, assistant
  std::string content;
};

struct ChatTemplateOptions {
  // "default" recognizes the model's own template; "chatml", "qwen3", "llama3", "llama3.1", "mistral" and
  // "plain" name a format instead.
  std::string name = "default";
  std::optional<bool> enable_thinking;     // kQwen3: false begins the answer with an empty thought
  std::optional<std::string> date_string;  // kLlama31: the date that the system's message gives as today's
};

class ChatTemplate {
 public:
  enum class Format {
    kPlain,    // the contents one after another: models without a template
    kChatMl,   // <|im_start|>role\ncontent<|im_end|>\n, and <|im_start|>assistant\n
    kQwen3,    // ChatML; earlier answers without their thoughts
    kLlama3,   // BOS, <|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>; contents are trimmed
    kLlama31,  // likewise, after a system message of its own with two dates
    kMistral,  // BOS, [INST] content [/INST]; no system messages
  };

  // Of the model folder's tokenizer_config.json. "default" recognizes its chat_template (or the file
  // chat_template.jinja beside it): SmolLM2's, plain ChatML, those of Qwen2, 2.5 and 3, Llama 3 to 3.3,
  // Mistral 7B's; none is kPlain. ChatML's default system message is read out of the template. Error for a
  // template that is not known, saying how to name its format, and for one that asks for the day's date
  // (Llama 3.2's) without `date_string`.
  static ChatTemplate from_folder(const std::string& folder, const ChatTemplateOptions& options = {});

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
  std::string date_;            // Llama 3.1
  bool empty_thought_ = false;  // Qwen3
};

}  // namespace octavo
