#include "octavo/refit/sources.h"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/refit/manifest.h"

namespace octavo {
namespace {

constexpr std::string_view kScaleSuffix = "_scale_inv";

// The scales of FP8 codes, which go with these.
bool is_scales(const std::string& name, const Checkpoint& checkpoint) {
  return name.ends_with(kScaleSuffix) &&
         checkpoint.find(name.substr(0, name.size() - kScaleSuffix.size())).has_value();
}

// Whole blocks of about 8 MiB.
std::int64_t rows_at_once(const TensorView& tensor) {
  constexpr std::int64_t kBytes = std::int64_t{8} << 20;
  const std::int64_t row_bytes =
      std::max<std::int64_t>(1, tensor.cols() * static_cast<std::int64_t>(size_of(tensor.dtype)));
  return std::max<std::int64_t>(1, kBytes / row_bytes / kBlock) * kBlock;
}

}  // namespace

void put_all(RefitTransaction& refit, const std::function<std::optional<NamedTensor>()>& next) {
  while (const auto named = next()) refit.put(named->name, named->tensor);
}

void put_all(RefitTransaction& refit, const Checkpoint& checkpoint, const Progress& progress) {
  struct Item {
    std::string name;
    TensorView tensor;
    std::optional<TensorView> scales;
  };
  std::vector<Item> items;
  std::int64_t total = 0;
  for (const std::string& name : checkpoint.names()) {
    if (refit.ignores(name) || is_scales(name, checkpoint)) continue;
    items.push_back({name, *checkpoint.find(name), std::nullopt});
    if (items.back().tensor.dtype == DType::kF8E4M3)
      items.back().scales = checkpoint.find(name + std::string(kScaleSuffix));
    total += items.back().tensor.bytes();
  }
  std::int64_t done = 0;
  std::vector<std::byte> rows;
  std::vector<std::byte> scale_rows;
  const auto read = [&](const TensorView& from, std::int64_t row, std::int64_t count,
                        std::vector<std::byte>& into) {
    TensorView piece = from;
    if (from.shape.size() == 2) piece.shape[0] = count;
    into.resize(static_cast<std::size_t>(piece.bytes()));
    checkpoint.read_rows(from, row, count, into.data());
    piece.data = into.data();
    return piece;
  };
  for (const Item& item : items) {
    const std::int64_t step = rows_at_once(item.tensor);
    for (std::int64_t row = 0; row < item.tensor.rows(); row += step) {
      const std::int64_t count = std::min(step, item.tensor.rows() - row);
      const TensorView piece = read(item.tensor, row, count, rows);
      const bool whole = count == item.tensor.rows();
      if (item.scales && (whole || item.scales->rows() == blocks_of(item.tensor.rows()))) {
        const std::int64_t scale_count = whole ? item.scales->rows() : blocks_of(count);
        const TensorView scales = read(*item.scales, row / kBlock, scale_count, scale_rows);
        whole ? refit.put_fp8(item.name, piece, scales) : refit.put_fp8_rows(item.name, row, piece, scales);
      } else {
        whole ? refit.put(item.name, piece) : refit.put_piece(item.name, row, 0, piece);
      }
      done += piece.bytes();
      if (progress) progress(done, total);
    }
  }
}

void check_tensors(const Checkpoint& checkpoint, const Weights& weights) {
  Manifest manifest(weights, {});
  for (const std::string& name : checkpoint.names())
    if (!is_scales(name, checkpoint)) manifest.arrive(name, *checkpoint.find(name));
  if (const std::string verdict = manifest.verdict(); !verdict.empty())
    fail("the weights are not those of the model in config.json: {}", verdict);
}

void load_checkpoint(const Checkpoint& checkpoint, Weights& weights, ThreadPool& pool,
                     const Progress& progress) {
  RefitTransaction refit(weights, pool, {});
  put_all(refit, checkpoint, progress);
  refit.commit();
}

std::uint64_t checksum_of(const ModelSpec& spec, const WeightOptions& options, ThreadPool& pool,
                          const std::function<void(RefitTransaction&)>& source) {
  auto memory = make_checksum_memory();
  const ChecksumMemory& sums = *memory;
  Weights weights(spec, options, std::move(memory));
  RefitTransaction refit(weights, pool, {});
  source(refit);
  refit.commit();
  return sums.sum();
}

}  // namespace octavo
