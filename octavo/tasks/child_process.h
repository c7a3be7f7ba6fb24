// A program that is spoken to in lines.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

namespace octavo {

// Started in a process group of its own, so that a Ctrl-C meant for us does not reach it; the destructor
// closes its input and, if that does not end it soon, kills the group. Used by one thread at a time.
class ChildProcess {
 public:
  // Error where the program cannot be started.
  explicit ChildProcess(const std::vector<std::string>& command);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // Sends a line and returns the next one that comes back, both without their end; timeout_s counts from now,
  // for the first line from kStartUp after the start if that is later. Error that says what went wrong: the
  // process has ended (how, and what it last wrote to its standard error), nothing came in time, or the line
  // is longer than kLongestLine.
  std::string ask(const std::string& line, double timeout_s);

  static constexpr std::chrono::seconds kStartUp{60};  // in which a Python program imports its libraries
  static constexpr std::size_t kLongestLine = std::size_t{1} << 20;

 private:
  void read_output();
  void read_errors();
  std::string ending();
  [[noreturn]] void fail_ended();

  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  bool answered_ = false;
  pid_t pid_ = -1;
  int input_ = -1;   // a socket, so that writing to a process that is gone raises no signal
  int output_ = -1;  // -1: it has closed it
  int errors_ = -1;
  std::string received_;     // of its output, after the last line that was taken
  std::string last_errors_;  // the end of its standard error
};

}  // namespace octavo
