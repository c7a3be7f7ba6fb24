// An HF model folder's weights: model.safetensors, or shards named by model.safetensors.index.json.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "octavo/checkpoint/safetensors.h"

namespace octavo {

class Checkpoint {
 public:
  // Maps and validates every shard. Throws Error naming what is missing, doubled or broken.
  explicit Checkpoint(const std::string& folder);

  const std::string& folder() const { return folder_; }
  std::optional<TensorView> find(std::string_view name) const;
  std::vector<std::string> names() const;  // sorted
  void drop_pages(const TensorView& view) const;
  // Copies rows [row, row + count) of a view by find() out of its file; Error when the file was cut
  // meanwhile.
  void read_rows(const TensorView& view, std::int64_t row, std::int64_t count, std::byte* out) const;

 private:
  std::string folder_;
  std::vector<SafetensorsFile> files_;
  std::unordered_map<std::string, std::size_t> file_of_;
};

}  // namespace octavo
