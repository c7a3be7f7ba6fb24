#include "octavo/refit/manifest.h"

#include <algorithm>
#include <utility>

#include "octavo/base/error.h"

namespace octavo {
namespace {

// A wrong model makes every name a problem: a few say what is the matter.
constexpr std::size_t kMaxListed = 8;

// "[3]" for the third element of a vector, "[3, 5]" in a matrix.
std::string position(const WeightEntry& entry, std::int64_t row, std::int64_t col) {
  return entry.shape.size() == 1 ? fmt::format("[{}]", col) : fmt::format("[{}, {}]", row, col);
}

}  // namespace

Manifest::Manifest(const Weights& weights, const RefitOptions& options)
    : weights_(weights), arrivals_(weights.table().size()) {
  std::size_t named = 0;
  for (const std::string& name : options.expected) {
    if (ignores(name)) continue;
    ++named;
    const WeightEntry* entry = weights.find(name);
    if (entry == nullptr) fail("the refit expects a tensor '{}' that the model does not have", name);
    if (std::exchange(arrival(*entry).expected, true)) fail("the refit expects tensor '{}' twice", name);
  }
  if (options.partial && named == 0)
    fail("a partial refit must name the tensors that it brings (RefitOptions::expected)");
  if (options.partial) return;
  for (const WeightEntry& entry : weights.table()) {
    const bool listed = std::exchange(arrival(entry).expected, true);
    if (!listed && named > 0)
      fail("the refit does not expect tensor '{}', which the model needs; name all, none, or set partial",
           entry.name);
  }
}

bool Manifest::ignores(std::string_view name) const {
  return name.ends_with(".rotary_emb.inv_freq") || (weights_.tied() && name == "lm_head.weight");
}

const WeightEntry* Manifest::find(std::string_view name) {
  if (ignores(name)) return nullptr;
  const WeightEntry* entry = weights_.find(name);
  if (entry == nullptr) {
    add_problem(fmt::format("'{}' is unknown to this model", name));
  } else if (!arrival(*entry).expected) {
    add_problem(fmt::format("'{}' is not among the names that this partial refit expects", name));
    return nullptr;
  }
  return entry;
}

const WeightEntry* Manifest::arrive(std::string_view name, const TensorView& tensor) {
  const WeightEntry* entry = find(name);
  if (entry == nullptr) return nullptr;
  if (tensor.shape != entry->shape) {
    arrival(*entry).refused = true;
    add_problem(fmt::format("'{}' has shape {}, but the model needs {}", name, shape_string(tensor.shape),
                            shape_string(entry->shape)));
    return nullptr;
  }
  return arrive_piece(name, 0, 0, tensor);
}

const WeightEntry* Manifest::arrive_piece(std::string_view name, std::int64_t row, std::int64_t col,
                                          const TensorView& piece) {
  const WeightEntry* entry = find(name);
  if (entry == nullptr) return nullptr;
  Arrival& so_far = arrival(*entry);
  const Rectangle place{row, col, piece.rows(), piece.cols()};
  if (piece.shape.size() != entry->shape.size() || row < 0 || col < 0 || place.rows < 1 || place.cols < 1 ||
      row + place.rows > entry->place.rows || col + place.cols > entry->place.cols) {
    so_far.refused = true;
    add_problem(fmt::format("'{}' got a piece {} at {}, which does not lie inside its shape {}", name,
                            shape_string(piece.shape), position(*entry, row, col),
                            shape_string(entry->shape)));
    return nullptr;
  }
  if (std::any_of(so_far.pieces.begin(), so_far.pieces.end(),
                  [&](const Rectangle& other) { return place.overlaps(other); })) {
    add_problem(piece.shape == entry->shape
                    ? fmt::format("'{}' came twice", name)
                    : fmt::format("'{}' got the values from {} on twice", name, position(*entry, row, col)));
    return nullptr;
  }
  so_far.elements += place.rows * place.cols;
  // Pieces that come one after the other are one, so that a tensor in many pieces stays cheap to check.
  if (!so_far.pieces.empty()) {
    Rectangle& last = so_far.pieces.back();
    if (last.col == col && last.cols == place.cols && last.row + last.rows == row) {
      last.rows += place.rows;
      return entry;
    }
  }
  so_far.pieces.push_back(place);
  return entry;
}

void Manifest::refuse_value(const WeightEntry& entry, std::int64_t row, std::int64_t col) {
  add_problem(
      fmt::format("'{}' holds a value that is not finite at {}", entry.name, position(entry, row, col)));
}

void Manifest::add_problem(std::string problem) {
  if (!problems_.empty() && problems_.back() == problem) return;  // of a tensor in many pieces
  ++count_;
  if (problems_.size() < kMaxListed) problems_.push_back(std::move(problem));
}

bool Manifest::complete(const WeightEntry& entry) const {
  return arrivals_[index_of(entry)].elements == entry.place.rows * entry.place.cols;
}

std::int64_t Manifest::complete_tensors() const {
  return std::count_if(weights_.table().begin(), weights_.table().end(),
                       [&](const WeightEntry& entry) { return complete(entry); });
}

std::string Manifest::verdict() {
  for (const WeightEntry& entry : weights_.table()) {
    const Arrival& so_far = arrival(entry);
    if (!so_far.expected || so_far.refused || complete(entry)) continue;
    if (so_far.elements == 0) {
      add_problem(fmt::format("'{}' is missing", entry.name));
    } else {
      add_problem(fmt::format("'{}' is incomplete: {} of {} values came", entry.name, so_far.elements,
                              entry.place.rows * entry.place.cols));
    }
  }
  std::string line = fmt::format("{}", fmt::join(problems_, "; "));
  if (count_ > problems_.size()) line += fmt::format("; and {} more", count_ - problems_.size());
  return line;
}

}  // namespace octavo
