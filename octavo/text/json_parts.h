// What the readers of tokenizer.json's parts share. A missing key or a wrong type throws nlohmann's
// exception, which Tokenizer::from_json turns into an Error.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"

namespace octavo {

[[noreturn]] inline void refuse_part(std::string_view kind, std::string_view type, std::string_view supported,
                                     const std::string& where) {
  fail("{}: {} '{}' is not supported (supported: {}); use a model with a byte-level BPE tokenizer", where,
       kind, printable(type), supported);
}

// Calls `visit` on a part, on each member of a (nested) Sequence, whose list is named `list`, and never on
// null.
template <typename Visit>
void for_each_step(const nlohmann::json& part, const char* list, const Visit& visit) {
  if (part.is_null()) return;
  if (part.at("type") != "Sequence") return visit(part);
  for (const auto& member : part.at(list)) for_each_step(member, list, visit);
}

// The id that the file gives to the token `name` in `place`: a whole number, and at most fifty times the
// largest vocabulary in use, so that tables by id stay small.
inline std::int32_t token_id(const nlohmann::json& value, std::string_view place, const std::string& name,
                             const std::string& where) {
  constexpr std::int64_t kMaxId = (1 << 24) - 1;
  const std::int64_t id = value.is_number_integer() ? value.get<std::int64_t>() : -1;
  if (id < 0 || id > kMaxId)
    fail("{}: {} gives {} the id {}; ids are whole numbers from 0 to {}", where, place, printable_json(name),
         printable_json(value), kMaxId);
  return static_cast<std::int32_t>(id);
}

// {"pattern": {"String": "…"}}; a Regex here is refused.
inline std::string fixed_pattern(const nlohmann::json& part, std::string_view kind,
                                 const std::string& where) {
  const auto& pattern = part.at("pattern");
  if (!pattern.contains("String")) refuse_part(kind, "Replace of a Regex", "Replace of a String", where);
  std::string text = pattern.at("String");
  if (text.empty()) fail("{}: {} Replace has an empty pattern; remove it", where, kind);
  return text;
}

}  // namespace octavo
