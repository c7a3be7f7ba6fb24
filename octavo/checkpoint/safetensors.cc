#include "octavo/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"

namespace octavo {
namespace {

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's own limit

// Bits of an element of every dtype that the format defines; sub-byte types included.
const std::map<std::string, int, std::less<>> kDTypeBits = {
    {"F64", 64}, {"F32", 32}, {"F16", 16}, {"BF16", 16},   {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8},
    {"I64", 64}, {"I32", 32}, {"I16", 16}, {"I8", 8},      {"U64", 64},    {"U32", 32},    {"U16", 16},
    {"U8", 8},   {"BOOL", 8}, {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"C64", 64}};

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3})
    if (name_of(dtype) == name) return dtype;
  return std::nullopt;
}

std::uint64_t unsigned_of(const nlohmann::json& value, const std::string& where, const std::string& what) {
  if (!value.is_number_unsigned())
    fail("{}: {} must be a non-negative integer, but is {}; the file is damaged", where, what,
         printable_json(value));
  return value.get<std::uint64_t>();
}

TensorInfo parse_tensor(const std::string& name, const nlohmann::json& entry, std::size_t data_begin,
                        std::size_t file_bytes, const std::string& where) {
  const std::string shown = printable(name);
  if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") ||
      !entry.contains("data_offsets"))
    fail("{}: tensor '{}' needs dtype, shape and data_offsets; the file is damaged", where, shown);
  TensorInfo info;
  info.name = name;
  if (!entry["dtype"].is_string()) fail("{}: tensor '{}' has a dtype that is not a string", where, shown);
  info.dtype_name = entry["dtype"].get<std::string>();
  const auto bits = kDTypeBits.find(info.dtype_name);
  if (bits == kDTypeBits.end())
    fail("{}: tensor '{}' has the unknown dtype '{}'", where, shown, printable(info.dtype_name));
  info.dtype = dtype_from_name(info.dtype_name);

  const auto& shape = entry["shape"];
  if (!shape.is_array()) fail("{}: tensor '{}' has a shape that is not a list", where, shown);
  std::uint64_t elements = 1;
  for (const auto& dimension : shape) {
    const std::uint64_t size =
        unsigned_of(dimension, where, fmt::format("a dimension of tensor '{}'", shown));
    if (size > std::numeric_limits<std::int64_t>::max() || __builtin_mul_overflow(elements, size, &elements))
      fail("{}: tensor '{}' has a shape too large for any memory; the file is damaged", where, shown);
    info.shape.push_back(static_cast<std::int64_t>(size));
  }
  std::uint64_t total_bits = 0;
  if (__builtin_mul_overflow(elements, static_cast<std::uint64_t>(bits->second), &total_bits))
    fail("{}: tensor '{}' has a shape too large for any memory; the file is damaged", where, shown);

  const auto& offsets = entry["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2)
    fail("{}: tensor '{}' needs two data_offsets; the file is damaged", where, shown);
  const std::uint64_t begin = unsigned_of(offsets[0], where, fmt::format("an offset of tensor '{}'", shown));
  const std::uint64_t end = unsigned_of(offsets[1], where, fmt::format("an offset of tensor '{}'", shown));
  if (begin > end || end > file_bytes - data_begin)
    fail("{}: tensor '{}' lies at bytes {} to {}, but the file holds {}; it is truncated or damaged", where,
         shown, begin, end, file_bytes - data_begin);
  if (total_bits % 8 != 0 || end - begin != total_bits / 8)
    fail("{}: tensor '{}' is {} {} and so needs {} bytes, but has {}; the file is damaged", where, shown,
         info.dtype_name, shape_string(info.shape), total_bits / 8, end - begin);
  info.offset = data_begin + begin;
  info.bytes = end - begin;
  return info;
}

}  // namespace

std::vector<TensorInfo> parse_safetensors_header(std::span<const std::byte> file, const std::string& where) {
  if (file.size() < kLengthBytes)
    fail("{}: {} bytes are too few for a safetensors file; it is truncated", where, file.size());
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), kLengthBytes);
  if (length > kMaxHeaderBytes || length > file.size() - kLengthBytes)
    fail("{}: the header claims {} bytes, but the file has {}; it is truncated or not a safetensors file",
         where, length, file.size());
  const auto* text = reinterpret_cast<const char*>(file.data()) + kLengthBytes;
  if (length == 0 || text[0] != '{')
    fail("{}: the header does not start with '{{'; it is not a safetensors file", where);
  const nlohmann::json header = parse_json({text, static_cast<std::size_t>(length)}, where);

  const std::size_t data_begin = kLengthBytes + static_cast<std::size_t>(length);
  std::vector<TensorInfo> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object() ||
          std::any_of(entry.begin(), entry.end(), [](const auto& v) { return !v.is_string(); }))
        fail("{}: __metadata__ must map strings to strings; the file is damaged", where);
      continue;
    }
    tensors.push_back(parse_tensor(name, entry, data_begin, file.size(), where));
  }
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.offset, a.bytes) < std::tie(b.offset, b.bytes);
  });
  // The format allows neither overlaps nor holes: what no tensor names could hide anything.
  std::size_t expected = data_begin;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.offset != expected)
      fail("{}: tensor '{}' starts at byte {} where {} was expected; tensors overlap or leave a hole", where,
           printable(tensor.name), tensor.offset - data_begin, expected - data_begin);
    expected += tensor.bytes;
  }
  if (expected != file.size())
    fail("{}: {} bytes after the last tensor belong to none; the file is damaged", where,
         file.size() - expected);
  return tensors;
}

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path) {
  // Not blocking, or a pipe under this name would wait for a writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail("cannot open '{}': {}", path, std::strerror(errno));
  struct stat status = {};
  if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(fd);
    fail("cannot read '{}': it is not a regular file", path);
  }
  const auto bytes = static_cast<std::size_t>(status.st_size);
  void* address = bytes == 0 ? nullptr : mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
  if (address == MAP_FAILED) {
    const int map_error = errno;
    close(fd);
    fail_system("cannot map '{}': {}", path, std::strerror(map_error));
  }
  file_ = {static_cast<const std::byte*>(address), bytes};
  try {
    tensors_ = parse_safetensors_header(file_, path);
  } catch (...) {
    if (address != nullptr) munmap(address, bytes);
    close(fd);
    throw;
  }
  fd_ = fd;
  for (std::size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      file_(std::exchange(other.file_, {})),
      tensors_(std::move(other.tensors_)),
      index_(std::move(other.index_)) {}

SafetensorsFile::~SafetensorsFile() {
  if (file_.data() != nullptr) munmap(const_cast<std::byte*>(file_.data()), file_.size());
  if (fd_ >= 0) close(fd_);
}

std::optional<TensorView> SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  if (found == index_.end()) return std::nullopt;
  const TensorInfo& info = tensors_[found->second];
  if (!info.dtype)
    fail("{}: tensor '{}' is {}, which Octavo does not read; convert it to F32, BF16, F16 or F8_E4M3", path_,
         printable(name), info.dtype_name);
  if (info.shape.size() > 2)
    fail("{}: tensor '{}' has shape {}; Octavo reads vectors and matrices", path_, printable(name),
         shape_string(info.shape));
  // Files of the first writers of the format can be so.
  if (info.offset % size_of(*info.dtype) != 0)
    fail("{}: tensor '{}' starts at byte {}, amid an element; save the file again with a current safetensors",
         path_, printable(name), info.offset);
  return TensorView{file_.data() + info.offset, *info.dtype, info.shape, 0};
}

bool SafetensorsFile::contains(const TensorView& view) const {
  const auto* at = static_cast<const std::byte*>(view.data);
  return at >= file_.data() && at + view.bytes() <= file_.data() + file_.size();
}

void SafetensorsFile::read_rows(const TensorView& view, std::int64_t row, std::int64_t count,
                                std::byte* out) const {
  assert(contains(view) && row >= 0 && row + count <= view.rows());
  auto at = static_cast<off_t>(view.row(row) - file_.data());
  auto left = static_cast<std::size_t>(count * view.cols()) * size_of(view.dtype);
  while (left > 0) {
    const ssize_t got = pread(fd_, out, left, at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_system("cannot read '{}': {}", path_, std::strerror(errno));
    if (got == 0)
      fail("'{}' ends at byte {}, amid a tensor; it has become shorter since it was opened, so write it anew",
           path_, at);
    out += got;
    at += got;
    left -= static_cast<std::size_t>(got);
  }
}

void SafetensorsFile::drop_pages(const TensorView& view) const {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(view.data) + page - 1) / page * page;
  const auto end =
      (reinterpret_cast<std::uintptr_t>(view.data) + static_cast<std::uintptr_t>(view.bytes())) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

SafetensorsWriter::SafetensorsWriter(const std::string& path, const std::vector<TensorDeclaration>& tensors,
                                     const std::map<std::string, std::string>& metadata)
    : path_(path), temporary_(fmt::format("{}.tmp.{}", path, getpid())) {
  for (const TensorDeclaration& tensor : tensors) {
    std::size_t bytes = size_of(tensor.dtype);
    for (const std::int64_t dimension : tensor.shape) bytes *= static_cast<std::size_t>(dimension);
    tensors_.push_back(
        {tensor.name, std::string(name_of(tensor.dtype)), tensor.dtype, tensor.shape, 0, bytes});
  }
  // Wide elements lie first, so that every tensor is aligned to its elements although the format allows no
  // holes.
  std::vector<TensorInfo*> in_file;
  for (TensorInfo& tensor : tensors_) in_file.push_back(&tensor);
  std::stable_sort(in_file.begin(), in_file.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return size_of(*a->dtype) > size_of(*b->dtype);
  });
  auto header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::size_t end = 0;
  for (TensorInfo* tensor : in_file) {
    assert(!header.contains(tensor->name));
    tensor->offset = std::exchange(end, end + tensor->bytes);
    header[tensor->name] = {
        {"dtype", tensor->dtype_name}, {"shape", tensor->shape}, {"data_offsets", {tensor->offset, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data starts aligned
  for (TensorInfo& tensor : tensors_) tensor.offset += kLengthBytes + text.size();

  fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_system("cannot write '{}': {}", path, std::strerror(errno));
  try {
    const std::uint64_t length = text.size();
    write_at(0, &length, sizeof length);
    write_at(kLengthBytes, text.data(), text.size());
  } catch (...) {
    discard();
    throw;
  }
}

SafetensorsWriter::~SafetensorsWriter() { discard(); }

void SafetensorsWriter::discard() noexcept {
  if (fd_ < 0) return;
  close(std::exchange(fd_, -1));
  unlink(temporary_.c_str());
}

void SafetensorsWriter::write_at(std::size_t offset, const void* data, std::size_t bytes) {
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::pwrite(fd_, at, bytes, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_system("cannot write '{}': {}; nothing was kept", path_, std::strerror(errno));
    at += written;
    offset += static_cast<std::size_t>(written);
    bytes -= static_cast<std::size_t>(written);
  }
}

void SafetensorsWriter::write(std::string_view name, const void* data, std::size_t bytes) {
  assert(next_ < tensors_.size() && tensors_[next_].name == name && tensors_[next_].bytes == bytes);
  (void)name;
  write_at(tensors_[next_].offset, data, bytes);
  ++next_;
}

void SafetensorsWriter::finish() {
  assert(next_ == tensors_.size());
  if (fsync(fd_) != 0 || std::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    discard();
    fail_system("cannot write '{}': {}; nothing was kept", path_, std::strerror(error));
  }
  close(std::exchange(fd_, -1));
}

}  // namespace octavo
