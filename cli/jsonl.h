// JSON lines in and out.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/error.h"

namespace octavo {

// One line of a request file. `id` is kept as it came (string or number) and given back in the output.
struct PromptLine {
  nlohmann::json id;
  std::string prompt;  // text, unless has_ids
  std::vector<std::int32_t> prompt_ids;
  bool has_ids = false;
  std::string where;
};

// `where` is file:line. Lines hold {"id", "prompt"} or {"id", "prompt_ids"}; Error for anything else.
PromptLine parse_prompt_line(std::string_view line, const std::string& where);

// {"id", "token_ids"}
PromptLine parse_token_line(std::string_view line, const std::string& where);

// A JSON string, or a JSON array of token ids.
std::string parse_text_line(std::string_view line, const std::string& where);
std::vector<std::int32_t> parse_ids_line(std::string_view line, const std::string& where);

// Error naming both lines when two have the same id: their outputs could not be told apart.
void refuse_same_ids(const std::vector<PromptLine>& lines);

// Does `work`; an Error that it throws says `where` too.
template <typename Work>
void at_place(const std::string& where, const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    fail("{}: {}", where, error.what());
  }
}

struct Line {
  std::string text;
  std::string where;  // "prompts.jsonl:3"
};
enum class BlankLines { kSkip, kRefuse };
// The lines of a file ("-": standard input) that are not blank. Error if it cannot be read or holds none, or
// has a blank one that is to be refused.
std::vector<Line> read_lines(const std::string& path, BlankLines blank = BlankLines::kSkip);

// Error where a LineWriter to `out` would replace the file that `flag` named as input.
void refuse_same_file(const std::string& out, const std::string& input, std::string_view flag);

// Writes lines to a file that appears under its name only when finish() has flushed it all, or straight to
// standard output when the path is empty or "-", and to what is no file: a pipe or a device. A failed write
// (a full disk) is a SystemError and leaves no file.
class LineWriter {
 public:
  explicit LineWriter(const std::string& path);
  ~LineWriter();
  LineWriter(const LineWriter&) = delete;
  LineWriter& operator=(const LineWriter&) = delete;

  void write(std::string_view line);
  void finish();

 private:
  void flush();

  std::string path_;
  std::string temporary_;  // empty: nothing is renamed at the end
  int fd_ = -1;
  std::string pending_;
};

// Replaces bytes that are not UTF-8 by U+FFFD, on one line.
std::string dump_line(const nlohmann::ordered_json& value);

}  // namespace octavo
