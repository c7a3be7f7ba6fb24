#include "cli/jsonl.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <string_view>
#include <utility>

#include "cli/interrupt.h"
#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"

namespace octavo {

namespace fs = std::filesystem;

namespace {

using nlohmann::json;

constexpr std::size_t kFlushBytes = std::size_t{64} << 10;
constexpr std::size_t kLongestLine = std::size_t{64} << 20;

std::vector<std::int32_t> ids_of(const json& value, const std::string& where, const std::string& what) {
  if (!value.is_array()) fail("{}: {} must be a list of token ids", where, what);
  std::vector<std::int32_t> ids;
  ids.reserve(value.size());
  for (const json& id : value) {
    if (!id.is_number_integer() || (id.is_number_unsigned() && id.get<std::uint64_t>() > 0x7fffffffU) ||
        id.get<std::int64_t>() < 0)
      fail("{}: {} must hold token ids, integers from 0, but one is {}", where, what, printable_json(id));
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

json object_of(std::string_view line, const std::string& where, std::initializer_list<const char*> keys) {
  json object = parse_json(line, where);
  if (!object.is_object()) fail("{}: each line must be a JSON object", where);
  for (const auto& [key, value] : object.items()) {
    bool known = false;
    for (const char* name : keys) known = known || key == name;
    if (!known) fail("{}: unknown key '{}'; a line has {}", where, printable(key), fmt::join(keys, ", "));
  }
  if (!object.contains("id")) fail("{}: the key 'id' is missing", where);
  const json& id = object["id"];
  if (!id.is_string() && !id.is_number_integer()) fail("{}: 'id' must be a string or an integer", where);
  return object;
}

}  // namespace

PromptLine parse_prompt_line(std::string_view text, const std::string& where) {
  const json object = object_of(text, where, {"id", "prompt", "prompt_ids"});
  if (object.contains("prompt") == object.contains("prompt_ids"))
    fail("{}: give either 'prompt' or 'prompt_ids'", where);
  PromptLine line;
  line.where = where;
  line.id = object["id"];
  if (object.contains("prompt_ids")) {
    line.has_ids = true;
    line.prompt_ids = ids_of(object["prompt_ids"], where, "'prompt_ids'");
  } else {
    if (!object["prompt"].is_string()) fail("{}: 'prompt' must be a string", where);
    line.prompt = object["prompt"].get<std::string>();
  }
  return line;
}

PromptLine parse_token_line(std::string_view text, const std::string& where) {
  const json object = object_of(text, where, {"id", "token_ids"});
  if (!object.contains("token_ids")) fail("{}: the key 'token_ids' is missing", where);
  PromptLine line;
  line.where = where;
  line.id = object["id"];
  line.has_ids = true;
  line.prompt_ids = ids_of(object["token_ids"], where, "'token_ids'");
  return line;
}

void refuse_same_ids(const std::vector<PromptLine>& lines) {
  std::map<json, const std::string*> seen;
  for (const PromptLine& line : lines) {
    const auto [first, fresh] = seen.emplace(line.id, &line.where);
    if (!fresh)
      fail("{}: the id {} is that of {} too; give each line its own", line.where, printable_json(line.id),
           *first->second);
  }
}

std::string parse_text_line(std::string_view line, const std::string& where) {
  const json value = parse_json(line, where);
  if (!value.is_string()) fail("{}: each line must be a JSON string", where);
  return value.get<std::string>();
}

std::vector<std::int32_t> parse_ids_line(std::string_view line, const std::string& where) {
  return ids_of(parse_json(line, where), where, "each line");
}

namespace {

// All of a file, a pipe or standard input. Not by a stream, which would go on reading after a signal.
std::string read_all(const std::string& path, const std::string& name) {
  const bool standard = path == "-";
  const auto failed = [&] {
    const int error = errno;
    throw_if_interrupted();
    fail("cannot read '{}': {}", name, std::strerror(error));
  };
  throw_if_interrupted();  // before what may wait for a writer
  const int fd = standard ? STDIN_FILENO : open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) failed();
  std::string text;
  constexpr std::size_t kPiece = std::size_t{1} << 20;
  std::size_t line = 0;  // where the last one begins
  for (;;) {
    const std::size_t size = text.size();
    text.resize(size + kPiece);
    const ssize_t got = ::read(fd, text.data() + size, kPiece);
    text.resize(size + static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
    if (got == 0) break;
    if (got > 0) {
      const std::size_t end = std::string_view(text).substr(size).rfind('\n');
      if (end != std::string_view::npos) line = size + end + 1;
      if (text.size() - line > kLongestLine)
        fail("'{}' has a line of more than {} MiB; are these lines of JSON?", name, kLongestLine >> 20);
      continue;
    }
    if (errno == EINTR) {
      throw_if_interrupted();
      continue;
    }
    failed();
  }
  if (!standard) close(fd);
  return text;
}

}  // namespace

std::vector<Line> read_lines(const std::string& path, BlankLines blank) {
  const std::string name = path == "-" ? "standard input" : path;
  const std::string text = read_all(path, name);
  std::vector<Line> lines;
  std::size_t begin = 0;
  for (std::int64_t number = 1; begin < text.size(); ++number) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    std::string where = fmt::format("{}:{}", name, number);
    if (line.find_first_not_of(" \t\r") != std::string::npos)
      lines.push_back({std::move(line), std::move(where)});
    else if (blank == BlankLines::kRefuse)
      fail("{}: the line is blank; take it out, since output lines are matched to input lines by number",
           where);
  }
  if (lines.empty()) fail("'{}' holds no lines", name);
  return lines;
}

void refuse_same_file(const std::string& out, const std::string& input, std::string_view flag) {
  std::error_code error;  // of what is not there, which is others' to report
  if (fs::is_regular_file(out, error) && fs::equivalent(out, input, error))
    fail("--out '{}' is the file of {}, which it would replace; choose another", out, flag);
}

LineWriter::LineWriter(const std::string& path) : path_(path) {
  if (path.empty() || path == "-") {
    path_ = "standard output";
    fd_ = STDOUT_FILENO;
    return;
  }
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::is_directory(status)) fail("cannot write '{}': it is a folder; name a file", path);
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    fd_ = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  } else {
    // A link stays one, whether or not there is a file behind it yet.
    if (fs::exists(status))
      path_ = fs::canonical(path, error).string();
    else if (fs::is_symlink(fs::symlink_status(path, error)))
      path_ = (fs::path(path).parent_path() / fs::read_symlink(path, error)).string();
    temporary_ = fmt::format("{}.tmp.{}", path_, getpid());
    fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    // A file that is replaced keeps its permissions.
    if (fd_ >= 0 && fs::exists(status)) fchmod(fd_, static_cast<mode_t>(status.permissions()));
  }
  if (fd_ < 0) {
    const int reason = errno;
    throw_if_interrupted();
    fail("cannot write '{}': {}", path, std::strerror(reason));
  }
}

LineWriter::~LineWriter() {
  if (fd_ < 0 || fd_ == STDOUT_FILENO) return;
  close(fd_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void LineWriter::flush() {
  const char* at = pending_.data();
  std::size_t left = pending_.size();
  while (left > 0) {
    const ssize_t written = ::write(fd_, at, left);
    if (written < 0 && errno == EINTR) {
      throw_if_interrupted();
      continue;
    }
    if (written < 0) fail_system("cannot write '{}': {}", path_, std::strerror(errno));
    at += written;
    left -= static_cast<std::size_t>(written);
  }
  pending_.clear();
}

void LineWriter::write(std::string_view line) {
  pending_.append(line);
  pending_.push_back('\n');
  // A reader of standard output wants lines as they come; a file wants few writes.
  if (temporary_.empty() || pending_.size() >= kFlushBytes) flush();
}

void LineWriter::finish() {
  flush();
  if (temporary_.empty()) return;
  const bool synced = fsync(fd_) == 0;
  if (!synced || close(std::exchange(fd_, -1)) != 0 || std::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    unlink(temporary_.c_str());
    fail_system("cannot write '{}': {}", path_, std::strerror(error));
  }
}

std::string dump_line(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace octavo
