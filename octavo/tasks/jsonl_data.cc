// DataSet over a JSONL file. Lines are checked when the file is opened, so that a run does not meet a bad one
// hours later.
#include <nlohmann/json.hpp>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/tasks/data_set.h"

namespace octavo {
namespace {

using nlohmann::json;

std::string replace_all(std::string text, std::string_view what, const std::string& with) {
  for (std::size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += with.size())
    text.replace(at, what.size(), with);
  return text;
}

std::vector<Message> read_messages(const json& value, const std::string& where) {
  if (!value.is_array() || value.empty()) fail("{}: messages must be a list of {{role, content}}", where);
  std::vector<Message> messages;
  for (const json& item : value) {
    if (!item.is_object() || !item.contains("role") || !item["role"].is_string() ||
        !item.contains("content") || !item["content"].is_string())
      fail("{}: message {} must be an object whose role and content are texts", where, messages.size());
    messages.push_back({item["role"], item["content"]});
    if (const std::string& role = messages.back().role;
        role != "system" && role != "user" && role != "assistant")
      fail("{}: message {} has the role '{}'; known are system, user and assistant", where,
           messages.size() - 1, printable(role));
  }
  if (messages.back().role != "user")
    fail("{}: the last message must be the user's, for the model to answer", where);
  return messages;
}

std::string read_answer(const json& line, const JsonlOptions& options, const std::string& where) {
  const auto found = line.find(options.output_key);
  if (found == line.end()) {
    if (!options.needs_answer) return {};
    fail("{}: there is no '{}', the right answer (data.train.output_key names the field)", where,
         options.output_key);
  }
  if (found->is_string()) return *found;
  if (found->is_number()) return found->dump();
  if (!options.needs_answer) return {};
  fail("{}: '{}' must be a text or a number, not {}", where, options.output_key, printable_json(*found));
}

class JsonlData : public DataSet {
 public:
  explicit JsonlData(JsonlOptions options) : options_(std::move(options)), text_(read_file(options_.path)) {
    std::int64_t number = 0;
    for (std::size_t begin = 0; begin < text_.size();) {
      const std::size_t end = std::min(text_.find('\n', begin), text_.size());
      const Line line{begin, end - begin, ++number};
      begin = end + 1;
      if (view(line).find_first_not_of(" \t\r") == std::string_view::npos) continue;
      read(line);
      lines_.push_back(line);
    }
    if (lines_.empty()) fail("{}: there is no line in it", options_.path);
  }

  std::int64_t size() const override { return static_cast<std::int64_t>(lines_.size()); }
  TaskSample at(std::int64_t index) const override {
    return read(lines_.at(static_cast<std::size_t>(index)));
  }

 private:
  struct Line {
    std::size_t begin, size;
    std::int64_t number;
  };

  std::string_view view(const Line& line) const {
    return std::string_view(text_).substr(line.begin, line.size);
  }

  TaskSample read(const Line& line) const {
    const std::string where = options_.path + ":" + std::to_string(line.number);
    const json value = parse_json(view(line), where);
    if (!value.is_object()) fail("{}: must be an object, not {}", where, printable_json(value));
    TaskSample sample{.id = where, .line = std::string(view(line))};
    if (value.contains("messages")) {
      sample.messages = read_messages(value["messages"], where);
    } else {
      const auto prompt = value.find(options_.input_key);
      if (prompt == value.end() || !prompt->is_string())
        fail("{}: there is neither `messages` nor a text '{}' (data.train.input_key names the field)", where,
             options_.input_key);
      const std::string text = *prompt;
      sample.messages.push_back(
          {"user", options_.prompt_text.empty() ? text : replace_all(options_.prompt_text, "{}", text)});
    }
    if (!options_.system_prompt.empty() && sample.messages.front().role != "system")
      sample.messages.insert(sample.messages.begin(), {"system", options_.system_prompt});
    sample.answer = read_answer(value, options_, where);
    return sample;
  }

  JsonlOptions options_;
  std::string text_;
  std::vector<Line> lines_;
};

}  // namespace

std::unique_ptr<DataSet> open_jsonl(const JsonlOptions& options) {
  return std::make_unique<JsonlData>(options);
}

}  // namespace octavo
