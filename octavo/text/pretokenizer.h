// The "pre_tokenizer" part of tokenizer.json: cuts text into the words that BPE works on.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/text/regex.h"

namespace octavo {

// null, Split (behaviour Isolated or Removed), Digits, ByteLevel (last), and a Sequence of these.
class PreTokenizer {
 public:
  using Emit = std::function<void(std::string_view word)>;

  PreTokenizer() = default;
  // Throws Error naming the part when it is not one of the above; `where` names the file.
  PreTokenizer(const nlohmann::json& part, const std::string& where);

  // Calls `emit` with the words of `text` (valid UTF-8) in order, none empty. Words are raw text: where
  // byte_level() is true, the model reads their bytes, else their characters.
  void split(std::string_view text, const Emit& emit) const { run(0, text, emit); }
  bool byte_level() const { return byte_level_; }

 private:
  struct Step {
    Regex regex;
    bool keep_matches = true;
    bool keep_rest = true;
    bool add_prefix_space = false;
    bool cut = true;  // false: `regex` is not used
  };

  void add(const nlohmann::json& part, const std::string& where);
  void run(std::size_t step, std::string_view text, const Emit& emit) const;

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace octavo
