#include "octavo/checkpoint/config_reader.h"

#include <cmath>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/nearest.h"
#include "octavo/checkpoint/json.h"

namespace octavo {

using nlohmann::json;

const json* ConfigReader::find(const std::string& key) {
  known_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

const json& ConfigReader::need(const std::string& key) {
  const json* value = find(key);
  if (value == nullptr) fail("{}: the key '{}' is missing, and the result depends on it", where_, key);
  return *value;
}

void ConfigReader::need_even_if_null(const std::string& key) {
  if (!object_.contains(key)) need(key);
}

std::int64_t ConfigReader::integer(const std::string& key, const json& value, std::int64_t low,
                                   std::int64_t high) const {
  const bool fits = value.is_number_unsigned()
                        ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(high)
                        : value.is_number_integer();
  if (!fits || value.get<std::int64_t>() < low)
    fail("{}: '{}' must be an integer from {} to {}, but is {}", where_, key, low, high,
         printable_json(value));
  return value.get<std::int64_t>();
}

double ConfigReader::number(const std::string& key, const json& value) const {
  if (!value.is_number() || !std::isfinite(value.get<double>()) || value.get<double>() <= 0)
    fail("{}: '{}' must be a positive number, but is {}", where_, key, printable_json(value));
  return value.get<double>();
}

double ConfigReader::number_or(const std::string& key, double otherwise) {
  const json* value = find(key);
  return value == nullptr ? otherwise : number(key, *value);
}

bool ConfigReader::need_boolean(const std::string& key) {
  need(key);
  return boolean_or(key, false);
}

bool ConfigReader::boolean_or(const std::string& key, bool otherwise) {
  const json* value = find(key);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean())
    fail("{}: '{}' must be true or false, but is {}", where_, key, printable_json(*value));
  return value->get<bool>();
}

void ConfigReader::only(const std::string& key, const json& allowed, std::string_view meaning) {
  const json* value = find(key);
  if (value != nullptr && *value != allowed)
    fail("{}: '{}' is {}, but Octavo only computes {} ({})", where_, key, printable_json(*value),
         allowed.dump(), meaning);
}

void ConfigReader::refuse_unknown(const std::set<std::string, std::less<>>& irrelevant) const {
  const std::vector<std::string> known(known_.begin(), known_.end());
  for (const auto& [key, value] : object_.items()) {
    if (known_.contains(key) || irrelevant.contains(key)) continue;
    fail("{}: Octavo does not know the key '{}', which may change the result (the nearest known key is '{}')",
         where_, printable(key), nearest_name(key, known));
  }
}

}  // namespace octavo
