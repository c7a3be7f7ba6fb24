// The lines of request files.
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "cli/jsonl.h"
#include "fuzz/check_error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view line(reinterpret_cast<const char*>(data), size);
  const auto check_ids = [](const std::vector<std::int32_t>& ids) {
    for (const std::int32_t id : ids) assert(id >= 0);
  };
  octavo::check_error([&] {
    const octavo::PromptLine prompt = octavo::parse_prompt_line(line, "input");
    assert(prompt.has_ids ? prompt.prompt.empty() : prompt.prompt_ids.empty());
    assert(octavo::dump_line({{"id", prompt.id}}).find('\n') == std::string::npos);
    check_ids(prompt.prompt_ids);
  });
  octavo::check_error([&] { check_ids(octavo::parse_token_line(line, "input").prompt_ids); });
  octavo::check_error([&] { octavo::parse_text_line(line, "input"); });
  octavo::check_error([&] { check_ids(octavo::parse_ids_line(line, "input")); });
  return 0;
}
