#include "octavo/refit/sources.h"

#include <string_view>

#include "octavo/base/error.h"

namespace octavo {
namespace {

constexpr std::string_view kScaleSuffix = "_scale_inv";

// What old exports carry although no model needs it.
bool leftover(std::string_view name) { return name.ends_with(".rotary_emb.inv_freq"); }

}  // namespace

void put_all(RefitTransaction& refit, std::span<const NamedTensor> tensors) {
  for (const NamedTensor& named : tensors) refit.put(named.name, named.tensor);
}

void put_all(RefitTransaction& refit, const std::function<std::optional<NamedTensor>()>& next) {
  while (const auto named = next()) refit.put(named->name, named->tensor);
}

void put_all(RefitTransaction& refit, const Checkpoint& checkpoint, const Progress& progress) {
  struct Piece {
    std::string name;
    TensorView tensor;
    std::optional<TensorView> scales;
  };
  std::vector<Piece> pieces;
  std::int64_t total = 0;
  for (const std::string& name : checkpoint.names()) {
    // FP8 scales go with their codes.
    const bool scales = name.ends_with(kScaleSuffix) &&
                        checkpoint.find(name.substr(0, name.size() - kScaleSuffix.size())).has_value();
    if (leftover(name) || scales) continue;
    pieces.push_back({name, *checkpoint.find(name), std::nullopt});
    if (pieces.back().tensor.dtype == DType::kF8E4M3)
      pieces.back().scales = checkpoint.find(name + std::string(kScaleSuffix));
    total += pieces.back().tensor.bytes();
  }
  std::int64_t done = 0;
  for (const Piece& piece : pieces) {
    if (piece.scales) {
      refit.put_fp8(piece.name, piece.tensor, *piece.scales);
    } else {
      refit.put(piece.name, piece.tensor);
    }
    checkpoint.drop_pages(piece.tensor);
    done += piece.tensor.bytes();
    if (progress) progress(done, total);
  }
}

void load_checkpoint(const Checkpoint& checkpoint, Weights& weights, ThreadPool& pool,
                     const Progress& progress) {
  RefitTransaction refit(weights, pool, {});
  put_all(refit, checkpoint, progress);
  refit.commit();
}

}  // namespace octavo
