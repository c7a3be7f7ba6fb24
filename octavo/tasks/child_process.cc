#include "octavo/tasks/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string_view>
#include <thread>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/tasks/answers.h"

extern char** environ;  // NOLINT(readability-redundant-declaration): not every libc declares it

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kErrorsKept = 2000;
constexpr auto kGrace = std::chrono::seconds(2);

void close_if_open(int& fd) {
  if (fd >= 0) close(fd);
  fd = -1;
}

struct Ends {
  int ours = -1;
  int theirs = -1;
  Ends() = default;
  Ends(const Ends&) = delete;
  Ends& operator=(const Ends&) = delete;
  ~Ends() {
    close_if_open(ours);
    close_if_open(theirs);
  }
  int release() { return std::exchange(ours, -1); }
};

void open_pipe(Ends& ends) {
  std::array<int, 2> fds{};
  if (pipe2(fds.data(), O_CLOEXEC) != 0) fail_system("cannot make a pipe: {}", std::strerror(errno));
  ends.ours = fds[0];
  ends.theirs = fds[1];
  fcntl(ends.ours, F_SETFL, O_NONBLOCK);
}

void open_socket(Ends& ends) {
  std::array<int, 2> fds{};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) != 0)
    fail_system("cannot make a socket: {}", std::strerror(errno));
  ends.ours = fds[0];
  ends.theirs = fds[1];
}

// What there is to read now is appended. False at the end of the stream.
bool read_some(int fd, std::string& text) {
  std::array<char, 65536> buffer{};
  const ssize_t size = read(fd, buffer.data(), buffer.size());
  if (size > 0) text.append(buffer.data(), static_cast<std::size_t>(size));
  return size > 0 || (size < 0 && (errno == EAGAIN || errno == EINTR));
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& command) {
  Ends input;
  Ends output;
  Ends errors;
  open_socket(input);
  open_pipe(output);
  open_pipe(errors);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input.theirs, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output.theirs, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, errors.theirs, STDERR_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  // Ignored signals stay ignored in a new program; it gets the usual ones back.
  sigset_t usual;
  sigemptyset(&usual);
  sigset_t to_default;
  sigemptyset(&to_default);
  sigaddset(&to_default, SIGPIPE);
  sigaddset(&to_default, SIGINT);
  posix_spawnattr_setsigdefault(&attributes, &to_default);
  posix_spawnattr_setsigmask(&attributes, &usual);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  std::vector<char*> arguments;
  arguments.reserve(command.size() + 1);
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  const int error = posix_spawnp(&pid_, arguments[0], &actions, &attributes, arguments.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) fail("cannot start '{}': {}", command[0], std::strerror(error));
  input_ = input.release();
  output_ = output.release();
  errors_ = errors.release();
}

ChildProcess::~ChildProcess() {
  close_if_open(input_);
  const auto give_up = Clock::now() + kGrace;
  while (pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == 0) {
    if (Clock::now() > give_up) {
      kill(-pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  close_if_open(output_);
  close_if_open(errors_);
}

void ChildProcess::read_output() {
  if (!read_some(output_, received_)) close_if_open(output_);
}

void ChildProcess::read_errors() {
  if (!read_some(errors_, last_errors_)) close_if_open(errors_);
  if (last_errors_.size() > kErrorsKept) last_errors_.erase(0, last_errors_.size() - kErrorsKept);
}

// How the process ended, and the last line that it complained with.
std::string ChildProcess::ending() {
  int status = 0;
  const auto give_up = Clock::now() + kGrace;
  while (waitpid(pid_, &status, WNOHANG) == 0) {
    if (Clock::now() > give_up) {
      kill(-pid_, SIGKILL);
      waitpid(pid_, &status, 0);
      pid_ = -1;
      return "it closed its output and went on running";
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  pid_ = -1;
  if (WIFSIGNALED(status))
    return fmt::format("it was ended by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
  return fmt::format("it ended with exit code {}", WEXITSTATUS(status));
}

void ChildProcess::fail_ended() {
  const std::string how = ending();
  if (errors_ >= 0) read_errors();
  std::string_view line = trimmed(last_errors_);
  line = line.substr(line.rfind('\n') + 1);  // npos + 1 is 0
  if (line.empty()) fail("{}", how);
  fail("{}; its last words: {}", how, printable(line));
}

std::string ChildProcess::ask(const std::string& line, double timeout_s) {
  const auto begin = answered_ ? Clock::now() : std::max(Clock::now(), started_ + kStartUp);
  const auto deadline = begin + std::chrono::duration<double>(timeout_s);
  std::string unsent = line + "\n";
  for (;;) {
    if (const std::size_t end = received_.find('\n'); end != std::string::npos && unsent.empty()) {
      std::string answer = received_.substr(0, end);
      received_.erase(0, end + 1);
      answered_ = true;
      return answer;
    }
    if (received_.size() > kLongestLine) fail("its answer is longer than {} bytes", kLongestLine);
    if (output_ < 0) fail_ended();

    const double left = std::chrono::duration<double>(deadline - Clock::now()).count();
    if (left <= 0) fail("no answer within {} s", timeout_s);
    std::array<pollfd, 3> fds{
        {{output_, POLLIN, 0}, {errors_, POLLIN, 0}, {unsent.empty() ? -1 : input_, POLLOUT, 0}}};
    const int ready = poll(fds.data(), fds.size(), static_cast<int>(std::min(left, 3600.0) * 1000) + 1);
    if (ready < 0 && errno != EINTR) fail_system("cannot wait for a process: {}", std::strerror(errno));
    if (ready <= 0) continue;
    if (fds[1].revents != 0) read_errors();
    if (fds[0].revents != 0) read_output();
    if (fds[2].revents != 0) {
      const ssize_t sent = send(input_, unsent.data(), unsent.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent > 0) unsent.erase(0, static_cast<std::size_t>(sent));
      if (sent < 0 && errno == EPIPE) fail_ended();
    }
  }
}

}  // namespace octavo
