#include "cli/interrupt.h"

#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <ctime>

namespace octavo {
namespace {

std::atomic<int> caught{0};
std::atomic<std::int64_t> caught_at{0};  // milliseconds
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<std::int64_t>::is_always_lock_free);

// What a signal handler may call.
std::int64_t now_ms() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1'000'000;
}

void on_signal(int signal) {
  const std::int64_t now = now_ms();
  if (caught == 0) {
    caught_at = now;
    caught = signal;
    return;
  }
  // timeout(1) and some schedulers send one and the same signal to the process and to its group.
  constexpr std::int64_t kSameSignal = 200;
  if (signal == caught && now - caught_at < kSameSignal) return;
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

}  // namespace

void catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = on_signal;  // without SA_RESTART: reading and writing end, too
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before = {};
    sigaction(signal, nullptr, &before);
    if (before.sa_handler != SIG_IGN) sigaction(signal, &action, nullptr);  // ignored: nohup's wish
  }
}

void throw_if_interrupted() {
  if (const int signal = caught.load(); signal != 0) throw Interrupted(signal);
}

void end_by(const Interrupted& interrupted) {
  std::signal(interrupted.signal(), SIG_DFL);
  std::raise(interrupted.signal());
  std::_Exit(128 + interrupted.signal());
}

}  // namespace octavo
