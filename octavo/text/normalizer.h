// The "normalizer" part of tokenizer.json.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

// null, NFC, Prepend, Replace of a fixed string, and a Sequence of these.
class Normalizer {
 public:
  Normalizer() = default;
  // Throws Error naming the part when it is not one of the above; `where` names the file.
  Normalizer(const nlohmann::json& part, const std::string& where);

  bool empty() const { return steps_.empty(); }
  // `text` must be valid UTF-8.
  std::string apply(std::string_view text) const;

 private:
  void add(const nlohmann::json& part, const std::string& where);

  std::vector<std::function<std::string(std::string_view)>> steps_;
};

// `text` with every `pattern` (not empty) replaced, from left to right.
std::string replace_all(std::string_view text, std::string_view pattern, std::string_view content);

}  // namespace octavo
