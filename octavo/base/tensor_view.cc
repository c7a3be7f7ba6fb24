#include "octavo/base/tensor_view.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace octavo {

std::string shape_string(const std::vector<std::int64_t>& shape) {
  constexpr std::size_t kMost = 8;  // dimensions in a message; a file may claim any number
  if (shape.size() <= kMost) return fmt::format("[{}]", fmt::join(shape, ", "));
  return fmt::format("[{}, ... {} dimensions]", fmt::join(shape.begin(), shape.begin() + kMost, ", "),
                     shape.size());
}

}  // namespace octavo
