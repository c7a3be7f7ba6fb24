#include "octavo/engine/stop_text.h"

#include <algorithm>
#include <cassert>

namespace octavo {

bool StopText::append(std::string_view piece) {
  assert(stop_.empty());
  const std::size_t old_size = text_.size();
  text_ += piece;
  std::size_t best_begin = std::string::npos;
  std::size_t best_end = std::string::npos;
  for (const std::string& stop : stops_) {
    // A new match has to reach into the new piece.
    const std::size_t from = old_size - std::min(old_size, stop.size() - 1);
    const std::size_t begin = text_.find(stop, from);
    if (begin == std::string::npos) continue;
    const std::size_t end = begin + stop.size();
    if (end > best_end || (end == best_end && begin >= best_begin)) continue;
    best_begin = begin;
    best_end = end;
    stop_ = stop;
  }
  if (best_begin == std::string::npos) return false;
  text_.resize(best_begin);
  return true;
}

std::string StopText::take(bool all) {
  std::size_t held = 0;  // longest end of the text that a stop string begins with
  if (!all) {
    const std::string_view rest = std::string_view(text_).substr(taken_);
    for (const std::string& stop : stops_) {
      for (std::size_t length = std::min(stop.size() - 1, rest.size()); length > held; --length) {
        if (rest.substr(rest.size() - length) == std::string_view(stop).substr(0, length)) held = length;
      }
    }
  }
  assert(taken_ <= text_.size());
  std::string fresh = text_.substr(taken_, text_.size() - held - taken_);
  taken_ = text_.size() - held;
  return fresh;
}

}  // namespace octavo
