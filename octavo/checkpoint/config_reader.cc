#include "octavo/checkpoint/config_reader.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"

namespace octavo {
namespace {

using nlohmann::json;

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

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
  constexpr std::size_t kComparedBytes = 64;  // longer than any known key
  for (const auto& [key, value] : object_.items()) {
    if (known_.contains(key) || irrelevant.contains(key)) continue;
    const std::string_view compared = std::string_view(key).substr(0, kComparedBytes);
    std::string nearest;
    std::size_t best = std::numeric_limits<std::size_t>::max();
    for (const std::string& name : known_)
      if (const std::size_t distance = edit_distance(compared, name); distance < best) {
        best = distance;
        nearest = name;
      }
    fail("{}: Octavo does not know the key '{}', which may change the result (the nearest known key is '{}')",
         where_, printable(key), nearest);
  }
}

}  // namespace octavo
