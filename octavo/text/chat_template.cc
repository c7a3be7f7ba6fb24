#include "octavo/text/chat_template.h"

#include <xxhash.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"

namespace octavo {
namespace {

using nlohmann::json;
using Format = ChatTemplate::Format;

struct KnownTemplate {
  XXH64_hash_t hash;  // XXH3 of the template's text
  Format format;
  const char* default_system;
  const char* after_answer;  // Mistral: what follows the end-of-sequence token
};

// The formats' tests hold each against the text that Jinja makes of the template.
constexpr KnownTemplate kKnown[] = {
    {0x99ab995e9629dacd, Format::kChatMl,
     "You are a helpful AI assistant named SmolLM, trained by Hugging Face", ""},  // SmolLM2-Instruct
    {0xa04f41d813a07b13, Format::kChatMl, "", ""},                                 // OpenHermes, Qwen 1
    {0x9799ad6e2dea0594, Format::kLlama3, "", ""},                                 // Llama-3-Instruct
    {0xb7f52373b11c60d7, Format::kMistral, "", " "},                               // Mistral-7B-Instruct-v0.1
    {0xa5d004210ebce758, Format::kMistral, "", ""},                                // v0.2
};

std::optional<Format> format_named(const std::string& name) {
  if (name == "plain") return Format::kPlain;
  if (name == "chatml") return Format::kChatMl;
  if (name == "llama3") return Format::kLlama3;
  if (name == "mistral") return Format::kMistral;
  return std::nullopt;
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
    fail(
        "{}: there are several chat templates; say the format with policy.tokenizer.chat_template: chatml, "
        "llama3, "
        "mistral or plain",
        path);
  return found->get<std::string>();
}

std::string_view trimmed(std::string_view text) {
  const char* space = " \t\r\n\f\v";
  const std::size_t begin = text.find_first_not_of(space);
  return begin == std::string_view::npos ? "" : text.substr(begin, text.find_last_not_of(space) - begin + 1);
}

}  // namespace

ChatTemplate ChatTemplate::from_folder(const std::string& folder, const std::string& name) {
  const std::string path = folder + "/tokenizer_config.json";
  const json config = std::filesystem::exists(path) ? parse_json(read_file(path), path) : json::object();
  if (!config.is_object()) fail("{}: must be an object", path);
  ChatTemplate result;
  result.bos_ = token_text(config, "bos_token", path);
  result.eos_ = token_text(config, "eos_token", path);
  if (name != "default") {
    const std::optional<Format> format = format_named(name);
    if (!format)
      fail("there is no chat template '{}'; known are default, chatml, llama3, mistral, plain", name);
    result.format_ = *format;
    return result;
  }
  const std::optional<std::string> text = template_text(config, folder, path);
  if (!text) return result;
  const XXH64_hash_t hash = XXH3_64bits(text->data(), text->size());
  for (const KnownTemplate& known : kKnown) {
    if (known.hash != hash) continue;
    result.format_ = known.format;
    result.default_system_ = known.default_system;
    result.eos_ += known.after_answer;
    return result;
  }
  fail(
      "{}: this chat template is not one that Octavo knows; if it writes one of the formats chatml, llama3, "
      "mistral or "
      "plain, name it with policy.tokenizer.chat_template",
      folder);
}

std::string ChatTemplate::render(std::span<const Message> messages) const {
  std::string text;
  switch (format_) {
    case Format::kPlain:
      for (const Message& m : messages) text += m.content;
      break;
    case Format::kChatMl: {
      const auto add = [&](const std::string& role, const std::string& content) {
        text += "<|im_start|>" + role + "\n" + content + "<|im_end|>\n";
      };
      if (!default_system_.empty() && (messages.empty() || messages[0].role != "system"))
        add("system", default_system_);
      for (const Message& m : messages) add(m.role, m.content);
      text += "<|im_start|>assistant\n";
      break;
    }
    case Format::kLlama3:
      text = bos_;
      for (const Message& m : messages)
        text.append("<|start_header_id|>" + m.role + "<|end_header_id|>\n\n").append(trimmed(m.content)) +=
            "<|eot_id|>";
      text += "<|start_header_id|>assistant<|end_header_id|>\n\n";
      break;
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
