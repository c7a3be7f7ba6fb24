#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "cli/interrupt.h"

namespace octavo {
namespace {
constexpr int kWidth = 30;
constexpr auto kInterval = std::chrono::milliseconds(100);
}  // namespace

ProgressBar::ProgressBar(std::string title)
    : title_(std::move(title)), terminal_(isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() {
  if (drawn_) fmt::print(stderr, "\r\033[K");
}

void ProgressBar::update(std::int64_t done, std::int64_t total, const std::string& note) {
  throw_if_interrupted();
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_ || (drawn_ && done < total && now - last_ < kInterval)) return;
  last_ = now;
  drawn_ = true;
  const double share =
      total <= 0 ? 0.0 : std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
  const int filled = static_cast<int>(share * kWidth);
  fmt::print(stderr, "\r\033[K{} [{:=<{}}{: <{}}] {:3.0f} % {}", title_, "", filled, "", kWidth - filled,
             share * 100, note);
  std::fflush(stderr);
}

}  // namespace octavo
