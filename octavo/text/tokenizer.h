// Text to token ids and back, as Hugging Face `tokenizers` does it: the same ids for the same tokenizer.json.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

struct TokenizerParts;

// Byte-level BPE (GPT-2, SmolLM2, Llama-3, Qwen2/3) and BPE with byte fallback (Llama-2, Mistral). Immutable:
// copies are cheap and share everything, and several threads may use one at once.
class Tokenizer {
 public:
  // Throws Error when the file cannot be read, is broken, or has a part that is not supported, which it
  // names.
  static Tokenizer from_file(const std::string& path);
  // The same for the file's bytes; `where` names them in messages.
  static Tokenizer from_json(std::string_view json, const std::string& where);

  // Special tokens written out in `text` become their ids in any case; `add_special_tokens` puts what the
  // post_processor asks for (such as a BOS token) around the text. Throws Error naming the byte offset where
  // `text` is not UTF-8.
  std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens = true) const;

  // Bytes that are not UTF-8 become U+FFFD. Ids without a token (a model's padded vocabulary has such) stand
  // for no text; negative ids throw Error.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special_tokens = false) const;

  // The bytes a token stands for, which need not be whole characters; empty for an id without a token. Throws
  // Error outside [0, vocab_size()).
  const std::string& token_bytes(std::int32_t id) const;
  bool is_special(std::int32_t id) const;                                 // false for an id without a token
  std::int32_t vocab_size() const;                                        // highest id + 1
  std::optional<std::int32_t> token_to_id(std::string_view token) const;  // as written in tokenizer.json

  const TokenizerParts& parts() const { return *parts_; }

 private:
  explicit Tokenizer(std::shared_ptr<const TokenizerParts> parts) : parts_(std::move(parts)) {}

  std::shared_ptr<const TokenizerParts> parts_;
};

}  // namespace octavo
