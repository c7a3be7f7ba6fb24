#include "octavo/text/normalizer.h"

#include <nlohmann/json.hpp>

#include "octavo/text/json_parts.h"
#include "octavo/text/unicode.h"

namespace octavo {

Normalizer::Normalizer(const nlohmann::json& part, const std::string& where) {
  for_each_step(part, "normalizers", [&](const nlohmann::json& step) { add(step, where); });
}

void Normalizer::add(const nlohmann::json& part, const std::string& where) {
  const std::string type = part.at("type");
  if (type == "NFC") {
    steps_.emplace_back(normalize_nfc);
  } else if (type == "Prepend") {
    const std::string prefix = part.at("prepend");
    steps_.emplace_back([prefix](std::string_view text) {
      return text.empty() ? std::string() : prefix + std::string(text);
    });
  } else if (type == "Replace") {
    const std::string pattern = fixed_pattern(part, "normalizer", where);
    const std::string content = part.at("content");
    steps_.emplace_back([=](std::string_view text) { return replace_all(text, pattern, content); });
  } else {
    refuse_part("normalizer", type, "NFC, Prepend, Replace", where);
  }
}

std::string Normalizer::apply(std::string_view text) const {
  std::string out(text);
  for (const auto& step : steps_) out = step(out);
  return out;
}

std::string replace_all(std::string_view text, std::string_view pattern, std::string_view content) {
  std::string out;
  std::size_t start = 0;
  for (std::size_t at; (at = text.find(pattern, start)) != std::string_view::npos;
       start = at + pattern.size()) {
    out.append(text, start, at - start);
    out.append(content);
  }
  return out.append(text, start);
}

}  // namespace octavo
