// A progress bar on standard error, drawn only on a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace octavo {

class ProgressBar {
 public:
  explicit ProgressBar(std::string title);
  ~ProgressBar();  // clears the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Throws Interrupted once a signal has come: every long work passes here.
  void update(std::int64_t done, std::int64_t total, const std::string& note = {});

 private:
  std::string title_;
  bool terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace octavo
