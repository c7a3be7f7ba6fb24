#include "octavo/checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"

namespace octavo {
namespace {

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

bool is_there(const std::filesystem::path& path) {
  std::error_code ignored;  // what cannot be looked at is as good as absent
  return std::filesystem::exists(path, ignored);
}

// The shard of every tensor, by the index file.
std::map<std::string, std::string> read_index(const std::filesystem::path& path) {
  const nlohmann::json index = parse_json(read_file(path), path);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    fail("{}: needs an object 'weight_map' from tensor names to file names", path.string());
  std::map<std::string, std::string> shard_of;
  for (const auto& [name, file] : index["weight_map"].items()) {
    if (!file.is_string())
      fail("{}: the file of tensor '{}' must be a string", path.string(), printable(name));
    const auto text = file.get<std::string>();
    if (text.empty() || text == "." || text == ".." || text.find('\0') != std::string::npos ||
        std::filesystem::path(text).filename() != text)
      fail("{}: tensor '{}' is said to lie in '{}', which is not a plain file name", path.string(),
           printable(name), printable(text));
    shard_of[name] = text;
  }
  if (shard_of.empty()) fail("{}: 'weight_map' names no tensor; download the file again", path.string());
  return shard_of;
}

}  // namespace

Checkpoint::Checkpoint(const std::string& folder) : folder_(folder) {
  const std::filesystem::path base(folder);
  const std::string index = (base / kIndex).string();
  std::error_code ignored;
  if (!std::filesystem::is_directory(base, ignored))
    fail("'{}' is not a folder; --model takes a Hugging Face model folder", folder);
  if (is_there(base / kSingle) && is_there(index))
    fail("'{}' holds both {} and {}; keep the one that belongs to the model", folder, kSingle, kIndex);
  std::map<std::string, std::string> shard_of;
  std::set<std::string> shards;
  if (is_there(index)) {
    shard_of = read_index(index);
    for (const auto& [name, shard] : shard_of) shards.insert(shard);
    for (const std::string& shard : shards)
      if (!is_there(base / shard))
        fail("'{}' is missing, which {} names; download the whole checkpoint", (base / shard).string(),
             kIndex);
  } else if (is_there(base / kSingle)) {
    shards.emplace(kSingle);
  } else {
    fail("'{}' holds neither {} nor {}; convert the weights to safetensors", folder, kSingle, kIndex);
  }

  for (const std::string& shard : shards) {
    files_.emplace_back((base / shard).string());
    const std::string& path = files_.back().path();
    for (const TensorInfo& tensor : files_.back().tensors()) {
      const auto [other, added] = file_of_.emplace(tensor.name, files_.size() - 1);
      if (!added)
        fail("tensor '{}' is in both '{}' and '{}'; keep one", printable(tensor.name),
             files_[other->second].path(), path);
      const auto indexed = shard_of.find(tensor.name);
      if (!shard_of.empty() && (indexed == shard_of.end() || indexed->second != shard))
        fail("tensor '{}' is in '{}', but '{}' says otherwise; the shards do not belong together",
             printable(tensor.name), path, index);
    }
  }
  for (const auto& [name, shard] : shard_of)
    if (file_of_.find(name) == file_of_.end())
      fail("'{}' places tensor '{}' in '{}', which does not hold it; download that shard again", index,
           printable(name), shard);
}

std::optional<TensorView> Checkpoint::find(std::string_view name) const {
  const auto found = file_of_.find(std::string(name));
  if (found == file_of_.end()) return std::nullopt;
  return files_[found->second].find(name);
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  names.reserve(file_of_.size());
  for (const auto& [name, file] : file_of_) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

void Checkpoint::read_rows(const TensorView& view, std::int64_t row, std::int64_t count,
                           std::byte* out) const {
  for (const SafetensorsFile& file : files_)
    if (file.contains(view)) return file.read_rows(view, row, count, out);
}

void Checkpoint::drop_pages(const TensorView& view) const {
  for (const SafetensorsFile& file : files_)
    if (file.contains(view)) return file.drop_pages(view);
}

}  // namespace octavo
