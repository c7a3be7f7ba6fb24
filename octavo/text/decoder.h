// The "decoder" part of tokenizer.json: what text a token stands for.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace octavo {

// ByteLevel (tokens are bytes), or Llama-2's Sequence of Replace, ByteFallback, Fuse, Strip (tokens are text,
// and tokens written <0xNN> are bytes).
class Decoder {
 public:
  Decoder() = default;
  // Throws Error naming the part when it is not one of the above; `where` names the file.
  Decoder(const nlohmann::json& part, const std::string& where);

  struct Meaning {
    std::string bytes;
    bool is_byte = false;  // a byte of the fallback, which becomes text only together with its neighbours
  };
  Meaning meaning_of(std::string_view token) const;

  bool byte_level() const { return byte_level_; }
  // This many of strip_text() are dropped from the start of the decoded text.
  std::size_t strip_count() const { return strip_count_; }
  const std::string& strip_text() const { return strip_text_; }

 private:
  void add(const nlohmann::json& part, const std::string& where);

  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool fused_ = false;
  std::vector<std::pair<std::string, std::string>> replacements_;
  std::size_t strip_count_ = 0;
  std::string strip_text_;
};

}  // namespace octavo
