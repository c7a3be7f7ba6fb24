#include "octavo/checkpoint/json.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <vector>

#include "octavo/base/error.h"

namespace octavo {
namespace {

constexpr int kMaxDepth = 64;
constexpr std::size_t kLongestShown = 200;

std::string shorten(std::string text) {
  if (text.size() <= kLongestShown) return text;
  std::size_t end = kLongestShown;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0U) == 0x80) --end;  // not within a character
  text.resize(end);
  return text + "…";
}

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& where) {
  using json = nlohmann::json;
  // The parser takes a NUL for the end of its input and would ignore whatever follows.
  if (text.find('\0') != std::string_view::npos) fail("{}: not valid JSON: it holds a NUL byte", where);
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, json::parse_event_t event, json& value) {
    const bool opens =
        event == json::parse_event_t::object_start || event == json::parse_event_t::array_start;
    if (opens && depth >= kMaxDepth) fail("{}: JSON is nested deeper than {} levels", where, kMaxDepth);
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      fail("{}: the key {} is given twice; keep one", where, printable_json(value));
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), check);
  } catch (const json::exception& error) {
    std::string_view reason = error.what();
    reason.remove_prefix(reason.find("] ") + 2);  // the library's own error code
    // A text of one line is often line 7 of a file, as `where` says.
    constexpr std::string_view kLine = "parse error at line 1, ";
    if (reason.starts_with(kLine) && text.find('\n') == std::string_view::npos)
      reason.remove_prefix(kLine.size());
    fail("{}: not valid JSON: {}", where, printable(reason));
  }
}

std::string read_file(const std::string& path) {
  // Also refuses folders and pipes, which have no size.
  std::error_code error;
  const std::uintmax_t bytes = std::filesystem::file_size(path, error);
  if (error) fail("cannot read '{}': {}", path, error.message());
  std::ifstream stream(path, std::ios::binary);
  std::string text(bytes, '\0');
  if (!stream.read(text.data(), static_cast<std::streamsize>(bytes)))
    fail("cannot read '{}': {}", path, std::strerror(errno));
  return text;
}

std::string printable(std::string_view text) {
  const std::string quoted = printable_json(text);
  // The quotes around it go, whether or not the closing one was cut off, and those inside need no mark.
  std::string plain = quoted.substr(1, quoted.size() - (quoted.ends_with('"') ? 2 : 1));
  for (std::size_t at = 0; (at = plain.find('\\', at)) != std::string::npos; ++at)
    if (plain.compare(at, 2, "\\\"") == 0)
      plain.erase(at, 1);
    else
      ++at;
  return plain;
}

std::string printable_json(const nlohmann::json& value) {
  return shorten(value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace octavo
