// JSON text to a value, with the errors a user can act on.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace octavo {

// Throws Error for broken JSON, a key given twice in one object, nesting deeper than 64, or invalid UTF-8.
nlohmann::json parse_json(std::string_view text, const std::string& where);

// The whole of a file; Error when it cannot be read, naming the path and the reason.
std::string read_file(const std::string& path);

}  // namespace octavo
