// The safetensors format: an 8-byte little-endian header length, a JSON header, then the tensors' bytes.
// (github.com/huggingface/safetensors, "Format".)
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "octavo/base/dtype.h"
#include "octavo/base/tensor_view.h"

namespace octavo {

struct TensorInfo {
  std::string name;
  std::string dtype_name;      // as written in the file: "BF16", "I64", …
  std::optional<DType> dtype;  // empty for a dtype that Octavo does not compute with
  std::vector<std::int64_t> shape;
  std::size_t offset = 0;  // from the start of the file
  std::size_t bytes = 0;
};

// Checks the header against the format's rules and the file's size; returns the tensors in file order. Throws
// Error.
std::vector<TensorInfo> parse_safetensors_header(std::span<const std::byte> file, const std::string& where);

// A mapped file, wholly validated when opened.
class SafetensorsFile {
 public:
  // Throws Error naming the path and what is wrong with the file.
  explicit SafetensorsFile(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) = delete;
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  // A view into the mapping. Error for a tensor that Octavo cannot compute with: of another dtype, of more
  // than two dimensions, or not aligned to its elements.
  std::optional<TensorView> find(std::string_view name) const;
  // Gives the pages that lie wholly inside the view back to the system; reading them again reads the file
  // again.
  void drop_pages(const TensorView& view) const;
  bool contains(const TensorView& view) const;
  // Reads the rows [row, row + count) of a view by find() from the file instead of the mapping, where a file
  // that was cut since it was opened would end the process: here it is an Error.
  void read_rows(const TensorView& view, std::int64_t row, std::int64_t count, std::byte* out) const;

 private:
  std::string path_;
  int fd_ = -1;
  std::span<const std::byte> file_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string, std::size_t> index_;
};

struct TensorDeclaration {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
};

// Writes a file tensor by tensor, so that no more than one needs to be in memory. The file appears under its
// name only when finish() has flushed it; without finish() nothing is left behind. Failures are SystemErrors
// (a full disk, say).
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::string& path, const std::vector<TensorDeclaration>& tensors,
                    const std::map<std::string, std::string>& metadata = {});
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // Tensors come in declared order, each whole. (Where they lie in the file follows the widths of their
  // elements.)
  void write(std::string_view name, const void* data, std::size_t bytes);
  void finish();

 private:
  void write_at(std::size_t offset, const void* data, std::size_t bytes);
  void discard() noexcept;

  std::string path_;
  std::string temporary_;
  int fd_ = -1;
  std::vector<TensorInfo> tensors_;
  std::size_t next_ = 0;
};

}  // namespace octavo
