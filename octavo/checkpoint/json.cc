#include "octavo/checkpoint/json.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>
#include <vector>

#include "octavo/base/error.h"

namespace octavo {
namespace {
constexpr int kMaxDepth = 64;
}

nlohmann::json parse_json(std::string_view text, const std::string& where) {
  using json = nlohmann::json;
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kMaxDepth) fail("{}: JSON is nested deeper than {} levels", where, kMaxDepth);
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      fail("{}: the key {} is given twice; keep one", where, value.dump(-1, ' ', false, json::error_handler_t::replace));
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), check);
  } catch (const json::exception& error) {
    fail("{}: not valid JSON: {}", where, error.what());
  }
}

std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail("cannot read '{}': {}", path, std::strerror(errno));
  std::ostringstream text;
  text << stream.rdbuf();
  if (stream.bad()) fail("cannot read '{}': {}", path, std::strerror(errno));
  return std::move(text).str();
}

}  // namespace octavo
