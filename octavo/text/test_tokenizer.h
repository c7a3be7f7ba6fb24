// A tokenizer small enough to reason about, for tests.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "octavo/text/bpe.h"

namespace octavo {

// Byte-level: id b is the byte b; 256 "aa", 257 "aab", 258 "bb"; the added tokens 259 <end> (special) and 260
// <tool>.
inline nlohmann::json small_tokenizer() {
  nlohmann::json vocab = {{"aa", 256}, {"aab", 257}, {"bb", 258}};
  for (int byte = 0; byte < 256; ++byte) vocab[byte_characters()[static_cast<std::size_t>(byte)]] = byte;
  const auto added = [](int id, const char* content, bool special) {
    return nlohmann::json{{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
                          {"rstrip", false}, {"normalized", false}, {"special", special}};
  };
  const nlohmann::json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", {added(259, "<end>", true), added(260, "<tool>", false)}},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model",
           {{"type", "BPE"}, {"dropout", nullptr}, {"vocab", vocab}, {"merges", {"a a", "aa b", "b b"}}}}};
}

}  // namespace octavo
