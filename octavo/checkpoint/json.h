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

// What came from a file, fit for one line of a message: controls escaped, bytes that are not UTF-8 replaced,
// and cut where it grows long. A value is shown as JSON.
std::string printable(std::string_view text);
std::string printable_json(const nlohmann::json& value);

}  // namespace octavo
