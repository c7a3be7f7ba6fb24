// Whole writes to files.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace octavo {

// Opens for appending; SystemError if that fails. `truncated_to` >= 0 cuts the file to so many bytes first.
int open_to_append(const std::string& path, std::int64_t truncated_to = -1);

// All of `bytes` in one go where the system allows, so that a reader seldom sees half a line. SystemError.
void write_all(int fd, std::string_view bytes, const std::string& path);

// The file appears under its name, or is replaced, only when it is whole. SystemError.
void write_file(const std::string& path, std::string_view bytes);

}  // namespace octavo
