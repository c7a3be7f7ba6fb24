// Reads one object of a config.json so that nothing in it is overlooked.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>

namespace octavo {

// Remembers the keys that were asked for, so that the rest can be refused. A key set to null counts as
// absent. Every error is an Error that names the key.
class ConfigReader {
 public:
  // `object` must outlive the reader; `where` stands first in messages.
  ConfigReader(const nlohmann::json& object, std::string where) : object_(object), where_(std::move(where)) {}

  const std::string& where() const { return where_; }

  const nlohmann::json* find(const std::string& key);
  const nlohmann::json& need(const std::string& key);
  // For keys whose null says something else than their absence.
  void need_even_if_null(const std::string& key);

  std::int64_t integer(const std::string& key, const nlohmann::json& value, std::int64_t low,
                       std::int64_t high) const;
  std::int64_t need_integer(const std::string& key, std::int64_t high) {
    return integer(key, need(key), 1, high);
  }
  // Positive and finite.
  double number(const std::string& key, const nlohmann::json& value) const;
  double need_number(const std::string& key) { return number(key, need(key)); }
  double number_or(const std::string& key, double otherwise);
  bool need_boolean(const std::string& key);
  bool boolean_or(const std::string& key, bool otherwise);

  // A key that Octavo computes at one value only.
  void only(const std::string& key, const nlohmann::json& allowed, std::string_view meaning);

  // Error for the first key that was neither asked for nor is `irrelevant`, with the nearest known one.
  void refuse_unknown(const std::set<std::string, std::less<>>& irrelevant = {}) const;

 private:
  const nlohmann::json& object_;
  std::string where_;
  std::set<std::string, std::less<>> known_;
};

}  // namespace octavo
