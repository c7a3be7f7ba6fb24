// SIGINT, SIGTERM and SIGHUP end a command at the next step of its work, so that it takes its unfinished
// files away with it; a second signal ends it at once.
#pragma once

#include <exception>

namespace octavo {

class Interrupted : public std::exception {
 public:
  explicit Interrupted(int signal) : signal_(signal) {}
  const char* what() const noexcept override { return "interrupted"; }
  int signal() const { return signal_; }

 private:
  int signal_;
};

void catch_interrupts();
// Throws Interrupted once a signal has come.
void throw_if_interrupted();
// Ends the process by the signal, as if it had never been caught.
[[noreturn]] void end_by(const Interrupted& interrupted);

}  // namespace octavo
