// The text of one sequence as it grows, up to the first stop string.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

class StopText {
 public:
  explicit StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // Adds a piece. True when a stop string is complete: the text now ends before it, and nothing may follow.
  // Of several, the one that is complete first counts, so how the text is cut into pieces does not matter.
  bool append(std::string_view piece);

  const std::string& text() const { return text_; }
  const std::string& stop() const { return stop_; }  // the stop string found, or ""

  // What has been added since the last call and can no longer become part of a stop string; with `all`,
  // everything.
  std::string take(bool all);

 private:
  std::vector<std::string> stops_;
  std::string text_;
  std::string stop_;
  std::size_t taken_ = 0;
};

}  // namespace octavo
