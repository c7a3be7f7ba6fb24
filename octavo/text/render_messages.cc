// render_messages: each input line, {"folder": F, "options": {"name", "enable_thinking", "date_string"},
// "messages":
// [{"role", "content"}]}, becomes a JSON string, or null where the folder's chat template is refused.
// python/tools/chat_template_reference.py compares it with Jinja.
#include <fmt/format.h>

#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/text/chat_template.h"

int main() try {
  using nlohmann::json;
  for (std::string line; std::getline(std::cin, line);) {
    const json input = json::parse(line);
    const json& given = input.at("options");
    octavo::ChatTemplateOptions options{.name = given.value("name", "default")};
    if (given.contains("enable_thinking")) options.enable_thinking = given["enable_thinking"].get<bool>();
    if (given.contains("date_string")) options.date_string = given["date_string"].get<std::string>();
    std::vector<octavo::Message> messages;
    for (const json& m : input.at("messages")) messages.push_back({m.at("role"), m.at("content")});
    json output;
    try {
      output = octavo::ChatTemplate::from_folder(input.at("folder"), options).render(messages);
    } catch (const octavo::Error& error) {
      fmt::print(stderr, "{}\n", error.what());
    }
    std::cout << output.dump() << std::endl;
  }
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "render_messages: {}\n", error.what());
  return 2;
}
