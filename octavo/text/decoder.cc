#include "octavo/text/decoder.h"

#include <charconv>
#include <nlohmann/json.hpp>

#include "octavo/text/bpe.h"
#include "octavo/text/json_parts.h"
#include "octavo/text/normalizer.h"
#include "octavo/text/unicode.h"

namespace octavo {
namespace {

// The bytes of a token of a byte-level vocabulary. As in HF, a token with any other character means itself.
std::string byte_level_bytes(std::string_view token) {
  std::string bytes;
  for (std::size_t i = 0; i < token.size();) {
    const Utf8Step step = utf8_step(token, i);
    const auto byte = byte_of_character(step.character);
    if (!byte) return std::string(token);
    bytes += static_cast<char>(*byte);
    i += step.length;
  }
  return bytes;
}

// <0x0A> is the byte 10.
bool read_fallback_byte(std::string_view text, std::string& byte) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return false;
  unsigned value = 0;
  const auto [end, error] = std::from_chars(text.data() + 3, text.data() + 5, value, 16);
  if (error != std::errc() || end != text.data() + 5) return false;
  byte.assign(1, static_cast<char>(value));
  return true;
}

}  // namespace

Decoder::Decoder(const nlohmann::json& part, const std::string& where) {
  if (part.is_null()) refuse_part("decoder", "null", "ByteLevel, Sequence", where);
  for_each_step(part, "decoders", [&](const nlohmann::json& step) { add(step, where); });
  if (!byte_level_ && !fused_)
    refuse_part("decoder", "Sequence without Fuse", "ByteLevel, Sequence with Fuse", where);
}

void Decoder::add(const nlohmann::json& part, const std::string& where) {
  const std::string type = part.at("type");
  // The steps in the one order in which Llama-2 has them; after a byte-level step nothing more may come.
  const auto require_order = [&](bool in_order) {
    if (byte_level_ || !in_order)
      refuse_part("decoder", type + " in this place",
                  "ByteLevel, or Replace, ByteFallback, Fuse, Strip in this order", where);
  };
  if (type == "ByteLevel") {
    require_order(replacements_.empty() && !byte_fallback_ && !fused_);
    byte_level_ = true;
  } else if (type == "Replace") {
    require_order(!byte_fallback_ && !fused_);
    replacements_.emplace_back(fixed_pattern(part, "decoder", where), part.at("content"));
  } else if (type == "ByteFallback") {
    require_order(!byte_fallback_ && !fused_);
    byte_fallback_ = true;
  } else if (type == "Fuse") {
    require_order(!fused_);
    fused_ = true;
  } else if (type == "Strip") {
    require_order(fused_ && strip_text_.empty());
    if (part.at("stop") != 0) refuse_part("decoder", "Strip at the end", "Strip at the start", where);
    strip_text_ = part.at("content");
    strip_count_ = part.at("start");
    if (strip_text_.empty() || utf8_step(strip_text_, 0).length != strip_text_.size())
      fail("{}: decoder Strip needs one character as content, not {}; mend it", where,
           printable_json(part.at("content")));
  } else {
    refuse_part("decoder", type, "ByteLevel, Replace, ByteFallback, Fuse, Strip", where);
  }
}

Decoder::Meaning Decoder::meaning_of(std::string_view token) const {
  if (byte_level_) return {byte_level_bytes(token)};
  Meaning meaning{std::string(token)};
  for (const auto& [pattern, content] : replacements_)
    meaning.bytes = replace_all(meaning.bytes, pattern, content);
  if (byte_fallback_) meaning.is_byte = read_fallback_byte(std::string(meaning.bytes), meaning.bytes);
  return meaning;
}

}  // namespace octavo
