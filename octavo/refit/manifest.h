// What a refit must bring, what has come, and what was wrong with it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "octavo/base/tensor_view.h"
#include "octavo/model/weights.h"
#include "octavo/refit/refit_options.h"

namespace octavo {

// Every expected name exactly once, whole or in pieces that cover it without overlap. What is wrong is
// collected, so that one look at the list mends all of it.
class Manifest {
 public:
  // Throws Error where `options.expected` does not fit the model or the kind of refit.
  Manifest(const Weights& weights, const RefitOptions& options);

  // What trainers and exports carry although the model has no place for it: buffers of old ones, and the
  // second copy of a tied head, which is the embedding whatever the copy says (transformers ties the two
  // after loading). Such names may come or be expected, and nothing of them is looked at.
  bool ignores(std::string_view name) const;

  // A tensor arrives, or a piece of one whose first element is at (row, col). Returns the tensor's entry, or
  // null when it is ignored or cannot be used; why is in the list then.
  const WeightEntry* arrive(std::string_view name, const TensorView& tensor);
  const WeightEntry* arrive_piece(std::string_view name, std::int64_t row, std::int64_t col,
                                  const TensorView& piece);
  // The value at (row, col) is not finite.
  void refuse_value(const WeightEntry& entry, std::int64_t row, std::int64_t col);
  void add_problem(std::string problem);
  bool sound() const { return count_ == 0; }

  // Adds what is missing to the list. Empty: everything has come. Otherwise one line.
  std::string verdict();

  bool complete(const WeightEntry& entry) const;
  std::int64_t complete_tensors() const;

 private:
  struct Rectangle {
    std::int64_t row, col, rows, cols;
    bool overlaps(const Rectangle& other) const {
      return row < other.row + other.rows && other.row < row + rows && col < other.col + other.cols &&
             other.col < col + cols;
    }
  };
  struct Arrival {
    bool expected = false;
    bool refused = false;  // something of it could not be used, which the list says
    std::int64_t elements = 0;
    std::vector<Rectangle> pieces;
  };
  const WeightEntry* find(std::string_view name);
  Arrival& arrival(const WeightEntry& entry) { return arrivals_[index_of(entry)]; }
  std::size_t index_of(const WeightEntry& entry) const {
    return static_cast<std::size_t>(&entry - weights_.table().data());
  }

  const Weights& weights_;
  std::vector<Arrival> arrivals_;  // parallel to the weight table
  std::vector<std::string> problems_;
  std::size_t count_ = 0;  // of problems, also of those too many to keep
};

}  // namespace octavo
