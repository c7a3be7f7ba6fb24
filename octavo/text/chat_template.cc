#include "octavo/text/chat_template.h"

#include <xxhash.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/text/unicode.h"

namespace octavo {
namespace {

using nlohmann::json;
using Format = ChatTemplate::Format;

constexpr const char* kLlama31Day = "26 Jul 2024";

struct KnownTemplate {
  // XXH3 of the template's text: without its last line's end, and \x01 for its default system message.
  XXH64_hash_t hash;
  Format format;
  const char* after_answer = "";  // Mistral: what follows the end-of-sequence token
  const char* date = "";          // Llama 3.1: today's date where none is given; empty: the real one
};

// The formats' tests hold each against the text that Jinja makes of the template.
constexpr KnownTemplate kKnown[] = {
    {0x52b3f96a9af927ba, Format::kChatMl},                    // SmolLM2-Instruct, Qwen2
    {0xa04f41d813a07b13, Format::kChatMl},                    // OpenHermes, Qwen 1
    {0x54719acfa6ade966, Format::kChatMl},                    // Qwen2.5
    {0x0283f874ff58d644, Format::kQwen3},                     // Qwen3, as first published
    {0xc9e0155c80737cf2, Format::kQwen3},                     // Qwen3
    {0x8fb5d937b1e8f5d0, Format::kChatMl},                    // Qwen3-Instruct-2507
    {0x9799ad6e2dea0594, Format::kLlama3},                    // Llama-3-Instruct
    {0x6ca7779b7730196a, Format::kLlama31, "", kLlama31Day},  // Llama-3.1-Instruct, 3.3
    {0xc3d57e38f5ff0756, Format::kLlama31},                   // Llama-3.2-Instruct
    {0xb7f52373b11c60d7, Format::kMistral, " "},              // Mistral-7B-Instruct-v0.1
    {0xa5d004210ebce758, Format::kMistral},                   // v0.2
};

constexpr std::pair<const char*, Format> kNamed[] = {
    {"chatml", Format::kChatMl},    {"qwen3", Format::kQwen3},     {"llama3", Format::kLlama3},
    {"llama3.1", Format::kLlama31}, {"mistral", Format::kMistral}, {"plain", Format::kPlain},
};
constexpr const char* kNames = "chatml, qwen3, llama3, llama3.1, mistral or plain";

std::optional<Format> format_named(const std::string& name) {
  for (const auto& [known, format] : kNamed)
    if (name == known) return format;
  return std::nullopt;
}

// What a Jinja string stands for; nothing where it has an escape that no template here needs.
std::optional<std::string> unescaped(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\') {
      out += text[i];
      continue;
    }
    if (++i == text.size()) return std::nullopt;
    if (text[i] == 'n')
      out += '\n';
    else if (text[i] == '\\' || text[i] == '\'' || text[i] == '"')
      out += text[i];
    else
      return std::nullopt;
  }
  return out;
}

std::size_t end_of_literal(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size() && text[at] != '\'') at += text[at] == '\\' ? 2 : 1;
  return std::min(at, text.size());
}

// Templates of one family differ in the system message that stands where a conversation has none, as a
// literal
// '<|im_start|>system\nMESSAGE<|im_end|>\n'. Returns MESSAGE, and puts \x01 in its place wherever it stands
// in `text`.
std::string take_default_system(std::string& text) {
  for (const std::string_view begin : {"'<|im_start|>system\n", "'<|im_start|>system\\n"}) {
    for (std::size_t at = text.find(begin); at != std::string::npos; at = text.find(begin, at + 1)) {
      const std::string_view rest = std::string_view(text).substr(at + begin.size());
      const std::string_view literal = rest.substr(0, end_of_literal(rest));
      const std::string source(literal.substr(0, literal.find("<|im_end|>")));
      if (source.size() == literal.size() || source.empty()) continue;
      const std::optional<std::string> message = unescaped(source);
      if (!message) continue;
      for (std::size_t i = 0; (i = text.find(source, i)) != std::string::npos; ++i)
        text.replace(i, source.size(), 1, '\x01');
      return *message;
    }
  }
  return {};
}

// A token is a text, or an object with its text as `content`; null and absence are none.
std::string token_text(const json& config, const char* key, const std::string& path) {
  if (!config.contains(key) || config[key].is_null()) return {};
  const json& token = config[key];
  if (token.is_string()) return token;
  if (token.is_object() && token.contains("content") && token["content"].is_string()) return token["content"];
  fail("{}: {} must be a text or an object with `content`", path, key);
}

std::optional<std::string> template_text(const json& config, const std::string& folder,
                                         const std::string& path) {
  if (const std::string file = folder + "/chat_template.jinja"; std::filesystem::exists(file))
    return read_file(file);
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) return std::nullopt;
  if (!found->is_string())
    fail("{}: there are several chat templates; say the format with policy.tokenizer.chat_template: {}", path,
         kNames);
  return found->get<std::string>();
}

// Jinja's trim, which is Python's strip: White_Space and four control characters.
std::string_view trimmed(std::string_view text) {
  const auto is_blank = [](char32_t c) { return is_space(c) || (c >= 0x1c && c <= 0x1f); };
  require_utf8(text, "a message");
  while (!text.empty() && is_blank(character_at(text, 0))) text.remove_prefix(utf8_step(text, 0).length);
  std::string utf8;
  while (!text.empty()) {
    const char32_t last = character_before(text, text.size());
    if (!is_blank(last)) break;
    utf8.clear();
    append_utf8(utf8, last);
    text.remove_suffix(utf8.size());
  }
  return text;
}

std::string chatml_turn(std::string_view role, std::string_view content) {
  return fmt::format("<|im_start|>{}\n{}<|im_end|>\n", role, content);
}

std::string llama3_turn(std::string_view role, std::string_view content) {
  return fmt::format("<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>", role, content);
}

// The last message of the user's that is not a tool's response; the last message where there is none.
std::size_t last_query(std::span<const Message> messages) {
  for (std::size_t i = messages.size(); i-- > 0;) {
    const std::string& text = messages[i].content;
    if (messages[i].role == "user" &&
        !(text.starts_with("<tool_response>") && text.ends_with("</tool_response>")))
      return i;
  }
  return messages.size() - 1;
}

std::string_view without_line_ends(std::string_view text, bool behind = true) {
  while (text.starts_with('\n')) text.remove_prefix(1);
  while (behind && text.ends_with('\n')) text.remove_suffix(1);
  return text;
}

// An answer as Qwen3's template shows it to the model: without its thought once it has been replied to.
std::string qwen3_answer(std::string_view content, bool after_query, bool last) {
  constexpr std::string_view kEnd = "</think>";
  constexpr std::string_view kBegin = "<think>";
  std::string_view thought;
  if (const std::size_t end = content.find(kEnd); end != std::string_view::npos) {
    thought = content.substr(0, end);
    if (const std::size_t begin = thought.rfind(kBegin); begin != std::string_view::npos)
      thought.remove_prefix(begin + kBegin.size());
    thought = without_line_ends(thought);
    content = without_line_ends(content.substr(content.rfind(kEnd) + kEnd.size()), false);
  }
  if (!after_query || (!last && thought.empty())) return std::string(content);
  return fmt::format("<think>\n{}\n</think>\n\n{}", thought, without_line_ends(content, false));
}

}  // namespace

ChatTemplate ChatTemplate::from_folder(const std::string& folder, const ChatTemplateOptions& options) {
  const std::string path = folder + "/tokenizer_config.json";
  const json config = std::filesystem::exists(path) ? parse_json(read_file(path), path) : json::object();
  if (!config.is_object()) fail("{}: must be an object", path);
  ChatTemplate result;
  result.bos_ = token_text(config, "bos_token", path);
  result.eos_ = token_text(config, "eos_token", path);
  result.empty_thought_ = options.enable_thinking == false;
  result.date_ = options.date_string.value_or(kLlama31Day);
  if (options.name != "default") {
    const std::optional<Format> format = format_named(options.name);
    if (!format) fail("there is no chat template '{}'; known are default, {}", options.name, kNames);
    result.format_ = *format;
    return result;
  }
  std::optional<std::string> text = template_text(config, folder, path);
  if (!text) return result;
  if (text->ends_with('\n')) text->pop_back();  // as Jinja does
  result.default_system_ = take_default_system(*text);
  const XXH64_hash_t hash = XXH3_64bits(text->data(), text->size());
  for (const KnownTemplate& known : kKnown) {
    if (known.hash != hash) continue;
    result.format_ = known.format;
    result.eos_ += known.after_answer;
    if (known.format == Format::kLlama31 && *known.date == '\0' && !options.date_string)
      fail(
          "{}: this chat template writes the day's date into every prompt; for a run that can be repeated "
          "say "
          "which, with policy.tokenizer.chat_template_kwargs.date_string: \"{}\"",
          folder, kLlama31Day);
    return result;
  }
  fail(
      "{}: this chat template is not one that Octavo knows; if it writes one of the formats {}, name it with "
      "policy.tokenizer.chat_template",
      folder, kNames);
}

std::string ChatTemplate::render(std::span<const Message> messages) const {
  std::string text;
  switch (format_) {
    case Format::kPlain:
      for (const Message& m : messages) text += m.content;
      break;
    case Format::kChatMl:
      if (!default_system_.empty() && (messages.empty() || messages[0].role != "system"))
        text += chatml_turn("system", default_system_);
      for (const Message& m : messages) text += chatml_turn(m.role, m.content);
      text += "<|im_start|>assistant\n";
      break;
    case Format::kQwen3: {
      const std::size_t query = last_query(messages);
      for (std::size_t i = 0; i < messages.size(); ++i) {
        const Message& m = messages[i];
        text += chatml_turn(m.role, m.role == "assistant"
                                        ? qwen3_answer(m.content, i > query, i + 1 == messages.size())
                                        : m.content);
      }
      text += "<|im_start|>assistant\n";
      if (empty_thought_) text += "<think>\n\n</think>\n\n";
      break;
    }
    case Format::kLlama3:
      text = bos_;
      for (const Message& m : messages) text += llama3_turn(m.role, trimmed(m.content));
      text += "<|start_header_id|>assistant<|end_header_id|>\n\n";
      break;
    case Format::kLlama31: {
      const bool has_system = !messages.empty() && messages[0].role == "system";
      text = bos_ +
             llama3_turn("system", fmt::format("Cutting Knowledge Date: December 2023\nToday Date: {}\n\n{}",
                                               date_, has_system ? trimmed(messages[0].content) : ""));
      for (const Message& m : messages.subspan(has_system ? 1 : 0))
        text += llama3_turn(m.role, trimmed(m.content));
      text += "<|start_header_id|>assistant<|end_header_id|>\n\n";
      break;
    }
    case Format::kMistral:
      text = bos_;
      for (std::size_t i = 0; i < messages.size(); ++i) {
        const Message& m = messages[i];
        if (m.role != (i % 2 == 0 ? "user" : "assistant"))
          fail(
              "the Mistral chat template takes user and assistant in turns, beginning with the user; message "
              "{} is "
              "the {}'s",
              i, m.role);
        text += m.role == "user" ? "[INST] " + m.content + " [/INST]" : m.content + eos_;
      }
      break;
  }
  return text;
}

}  // namespace octavo
