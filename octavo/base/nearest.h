// Which known name somebody may have meant.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace octavo {

// The number of characters to insert, delete or replace to make `a` into `b` (Levenshtein's distance).
std::size_t edit_distance(std::string_view a, std::string_view b);

// The name of `known` with the least distance to `name`, the first of equals; empty if none is known.
std::string nearest_name(std::string_view name, std::span<const std::string> known);

}  // namespace octavo
