#include "octavo/report/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "octavo/base/error.h"

namespace octavo {

int open_to_append(const std::string& path, std::int64_t truncated_to) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd < 0) fail_system("cannot write {}: {}", path, std::strerror(errno));
  if (truncated_to >= 0 && ftruncate(fd, truncated_to) != 0) {
    const int reason = errno;
    close(fd);
    fail_system("cannot shorten {}: {}", path, std::strerror(reason));
  }
  return fd;
}

void write_all(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_system("cannot write {}: {}", path, std::strerror(errno));
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
}

void write_file(const std::string& path, std::string_view bytes) {
  const std::string temporary = fmt::format("{}.tmp{}", path, getpid());
  const int fd = open_to_append(temporary, 0);
  try {
    write_all(fd, bytes, path);
  } catch (...) {
    close(fd);
    unlink(temporary.c_str());
    throw;
  }
  if (close(fd) != 0 || std::rename(temporary.c_str(), path.c_str()) != 0) {
    const int reason = errno;
    unlink(temporary.c_str());
    fail_system("cannot write {}: {}", path, std::strerror(reason));
  }
}

}  // namespace octavo
