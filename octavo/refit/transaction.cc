#include "octavo/refit/transaction.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/quant/element.h"
#include "octavo/quant/weight_quantizer.h"

namespace octavo {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Flat index of the first value that is not finite. For what is not written any more.
std::optional<std::int64_t> first_non_finite(const TensorView& values) {
  for (std::int64_t r = 0; r < values.rows(); ++r)
    for (std::int64_t c = 0; c < values.cols(); ++c)
      if (!std::isfinite(element_as_float(values, r, c))) return r * values.cols() + c;
  return std::nullopt;
}

// Rows [row, row + rows) and columns [col, col + cols) of a matrix, or of a vector, which is one row.
TensorView cut(const TensorView& tensor, std::int64_t row, std::int64_t col, std::int64_t rows,
               std::int64_t cols) {
  TensorView piece = tensor;
  piece.data = tensor.row(row) + col * static_cast<std::int64_t>(size_of(tensor.dtype));
  piece.row_stride = tensor.stride();
  piece.shape = tensor.shape.size() == 1 ? std::vector{cols} : std::vector{rows, cols};
  return piece;
}

std::int64_t round_down(std::int64_t value) { return value / kBlock * kBlock; }
std::int64_t round_up(std::int64_t value) { return blocks_of(value) * kBlock; }

}  // namespace

RefitTransaction::RefitTransaction(Weights& weights, ThreadPool& pool, RefitOptions options,
                                   std::unique_ptr<RefitHost> host)
    : weights_(weights),
      pool_(pool),
      options_(std::move(options)),
      host_(std::move(host)),
      manifest_(weights, options_) {
  if (options_.mode != RefitMode::kDoubleBuffered) return;
  weights_.memory().stage();
  note_extra(0);
}

RefitTransaction::~RefitTransaction() { abort("it ended without a commit"); }

bool RefitTransaction::open() const {
  const std::lock_guard lock(mutex_);
  return !over_;
}

std::string RefitTransaction::subject() const {
  return host_ ? fmt::format("the refit to version {}", options_.version) : "loading these weights";
}

// The host's lock; mutex_ is held already.
std::unique_lock<std::mutex> RefitTransaction::enter() {
  if (over_) fail("{} is over; begin another refit", subject());
  return host_ ? host_->enter() : std::unique_lock<std::mutex>();
}

// A tensor has arrived before it is written: where writing throws, a later commit must not take it for there.
template <typename Write>
void RefitTransaction::guard(std::string_view name, const Write& write) {
  try {
    write();
  } catch (const std::exception& error) {
    manifest_.add_problem(fmt::format("'{}' could not be written: {}", name, error.what()));
    throw;
  }
}

void RefitTransaction::put(std::string_view name, const TensorView& tensor) {
  const std::lock_guard lock(mutex_);
  const auto host_lock = enter();
  guard(name, [&] { put(manifest_.arrive(name, tensor), 0, 0, tensor); });
}

void RefitTransaction::put(std::span<const NamedTensor> tensors) {
  const std::lock_guard lock(mutex_);
  const auto host_lock = enter();
  std::vector<WeightPiece> pieces;
  std::vector<const WeightEntry*> entries;
  for (const NamedTensor& named : tensors) {
    const WeightEntry* const entry = manifest_.arrive(named.name, named.tensor);
    if (entry == nullptr || named.tensor.dtype == DType::kF8E4M3) {
      guard(named.name, [&] { put(entry, 0, 0, named.tensor); });  // says what is wrong
    } else {
      pieces.push_back({&entry->place, 0, 0, named.tensor});
      entries.push_back(entry);
    }
  }
  if (pieces.empty()) return;
  if (!manifest_.sound()) {
    for (std::size_t i = 0; i < pieces.size(); ++i) put(entries[i], 0, 0, pieces[i].values);
    return;
  }
  const auto start = Clock::now();
  if (options_.mode == RefitMode::kInPlace) dirty_ = true;
  std::vector<std::optional<std::int64_t>> bad;
  guard("many tensors", [&] { bad = weights_.memory().write(pieces, weights_.options().scaling, pool_); });
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    stats_.bytes_read += pieces[i].values.bytes();
    if (bad[i]) refuse(*entries[i], 0, 0, pieces[i].values, *bad[i]);
  }
  stats_.write_seconds += seconds_since(start);
}

void RefitTransaction::put_piece(std::string_view name, std::int64_t row, std::int64_t col,
                                 const TensorView& piece) {
  const std::lock_guard lock(mutex_);
  const auto host_lock = enter();
  guard(name, [&] { put(manifest_.arrive_piece(name, row, col, piece), row, col, piece); });
}

void RefitTransaction::put(const WeightEntry* entry, std::int64_t row, std::int64_t col,
                           const TensorView& piece) {
  if (entry == nullptr) return;
  if (piece.dtype == DType::kF8E4M3) {
    manifest_.add_problem(fmt::format("'{}' is F8_E4M3 without scales; FP8 weights come with '{}_scale_inv'",
                                      entry->name, entry->name));
    return;
  }
  const auto start = Clock::now();
  if (manifest_.sound()) {
    write_piece(*entry, row, col, piece);
    stats_.bytes_read += piece.bytes();
  } else if (piece.on_device) {
    // Only what is written is looked at there.
  } else if (const auto bad = first_non_finite(piece)) {
    refuse(*entry, row, col, piece, *bad);
  }
  stats_.write_seconds += seconds_since(start);
}

// What covers whole blocks goes into its place at once, the borders wait for their neighbours.
void RefitTransaction::write_piece(const WeightEntry& entry, std::int64_t row, std::int64_t col,
                                   const TensorView& piece) {
  const auto inner_end = [](std::int64_t end, std::int64_t whole) {
    return end == whole ? end : round_down(end);
  };
  const std::int64_t top = round_up(row);
  const std::int64_t left = round_up(col);
  const std::int64_t bottom = inner_end(row + piece.rows(), entry.place.rows);
  const std::int64_t right = inner_end(col + piece.cols(), entry.place.cols);
  if (top < bottom && left < right &&
      !write(entry, top, left, cut(piece, top - row, left - col, bottom - top, right - left)))
    return;
  for (std::int64_t r = round_down(row); r < row + piece.rows(); r += kBlock) {
    const bool inner_row = r >= top && r < bottom;
    for (std::int64_t c = round_down(col); c < col + piece.cols(); c += kBlock) {
      if (inner_row && c == left && left < right)
        c = round_down(right - 1) + kBlock;  // over the inner blocks
      if (c < col + piece.cols() && !stage(entry, r, c, row, col, piece)) return;
    }
  }
}

// False when the refit cannot succeed any more.
bool RefitTransaction::stage(const WeightEntry& entry, std::int64_t block_row, std::int64_t block_col,
                             std::int64_t row, std::int64_t col, const TensorView& piece) {
  if (piece.on_device) {
    manifest_.add_problem(
        fmt::format("'{}' came in pieces of GPU memory that do not end where 128x128 blocks do; bring those "
                    "from the host",
                    entry.name));
    return false;
  }
  bool written = true;
  const bool fits = staging_.add(
      entry, block_row, block_col, row, col, piece,
      [&](std::int64_t r, std::int64_t c, const TensorView& block) { written = write(entry, r, c, block); });
  if (!fits)
    manifest_.add_problem(fmt::format(
        "'{}' and others came in pieces that leave more than {} MiB of unfinished 128x128 blocks; bring the "
        "pieces of one tensor after the other",
        entry.name, BlockStaging::kMaxBytes >> 20));
  note_extra(staging_.bytes());
  return fits && written;
}

// A piece of whole blocks.
bool RefitTransaction::write(const WeightEntry& entry, std::int64_t row, std::int64_t col,
                             const TensorView& values) {
  if (options_.mode == RefitMode::kInPlace) dirty_ = true;
  const WeightPiece piece{&entry.place, row, col, values};
  const auto bad = weights_.memory().write({&piece, 1}, weights_.options().scaling, pool_).front();
  if (bad) refuse(entry, row, col, values, *bad);
  return !bad;
}

// The value with the flat index `bad` of a piece that begins at (row, col).
void RefitTransaction::refuse(const WeightEntry& entry, std::int64_t row, std::int64_t col,
                              const TensorView& piece, std::int64_t bad) {
  manifest_.refuse_value(entry, row + bad / piece.cols(), col + bad % piece.cols());
}

void RefitTransaction::put_fp8(std::string_view name, const TensorView& codes, const TensorView& scales) {
  const std::lock_guard lock(mutex_);
  const auto host_lock = enter();
  guard(name, [&] { put_fp8(manifest_.arrive(name, codes), 0, codes, scales); });
}

void RefitTransaction::put_fp8_rows(std::string_view name, std::int64_t row, const TensorView& codes,
                                    const TensorView& scales) {
  const std::lock_guard lock(mutex_);
  const auto host_lock = enter();
  guard(name, [&] { put_fp8(manifest_.arrive_piece(name, row, 0, codes), row, codes, scales); });
}

void RefitTransaction::put_fp8(const WeightEntry* entry, std::int64_t row, const TensorView& codes,
                               const TensorView& scales) {
  if (entry == nullptr) return;
  const auto start = Clock::now();
  const std::string& name = entry->name;
  const std::vector<std::int64_t> want = {blocks_of(codes.rows()), blocks_of(codes.cols())};
  if (codes.dtype != DType::kF8E4M3) {
    manifest_.add_problem(fmt::format("'{}' is {}, but codes must be F8_E4M3", name, name_of(codes.dtype)));
  } else if (!entry->matrix()) {
    manifest_.add_problem(fmt::format("'{}' is F8_E4M3, but a norm or bias must be bf16 or f32", name));
  } else if (row % kBlock != 0 || codes.cols() != entry->place.cols ||
             (codes.rows() % kBlock != 0 && row + codes.rows() != entry->place.rows)) {
    manifest_.add_problem(
        fmt::format("'{}' got codes {} at row {}; pieces in FP8 are whole rows of whole 128x128 blocks", name,
                    shape_string(codes.shape), row));
  } else if (scales.shape != want || (scales.dtype != DType::kF32 && scales.dtype != DType::kBF16)) {
    manifest_.add_problem(fmt::format("'{}_scale_inv' is {} {}, but 128x128 blocks of {} need {} F32 or BF16",
                                      name, shape_string(scales.shape), name_of(scales.dtype),
                                      shape_string(codes.shape), shape_string(want)));
  } else {
    write_codes(*entry, row, codes, scales);
    stats_.bytes_read += codes.bytes() + scales.bytes();
    stats_.write_seconds += seconds_since(start);
  }
}

void RefitTransaction::write_codes(const WeightEntry& entry, std::int64_t row, const TensorView& codes,
                                   const TensorView& scales) {
  std::vector<float> values;
  for (std::int64_t r = 0; r < scales.rows(); ++r) {
    for (std::int64_t c = 0; c < scales.cols(); ++c) {
      values.push_back(element_as_float(scales, r, c));
      if (std::isfinite(values.back()) && values.back() > 0) continue;
      manifest_.add_problem(fmt::format("'{}_scale_inv' holds {} at [{}, {}]; a scale is positive and finite",
                                        entry.name, values.back(), row / kBlock + r, c));
      return;
    }
  }
  if (!manifest_.sound()) return;
  if (entry.fp8()) {
    if (options_.mode == RefitMode::kInPlace) dirty_ = true;
    if (const auto bad = weights_.memory().write_codes(entry.place, row, codes, values.data(), pool_))
      refuse(entry, row, 0, codes, *bad);
    return;
  }
  // Kept in bf16: a strip of 128 rows at a time, so that no second copy of the matrix is made.
  const std::int64_t cols = codes.cols();
  std::vector<std::uint8_t> dense(static_cast<std::size_t>(kBlock * cols));
  std::vector<float> strip(dense.size());
  note_extra(staging_.bytes() + dense.size() * (1 + sizeof(float)));
  for (std::int64_t begin = 0; begin < codes.rows(); begin += kBlock) {
    const std::int64_t count = std::min(kBlock, codes.rows() - begin);
    if (const auto bad =
            copy_codes(cut(codes, begin, 0, count, cols), CodeLayout::kRowMajor, dense.data(), pool_))
      return refuse(entry, row + begin, 0, codes, *bad);
    dequantize_weight(dense.data(), CodeLayout::kRowMajor, count, cols,
                      values.data() + begin / kBlock * scales.cols(), scales.cols(), strip.data());
    if (!write(entry, row + begin, 0, {strip.data(), DType::kF32, {count, cols}, 0})) return;
  }
}

void RefitTransaction::note_extra(std::size_t bytes) {
  const std::size_t region = options_.mode == RefitMode::kDoubleBuffered ? weights_.bytes() : 0;
  stats_.extra_bytes = std::max(stats_.extra_bytes, region + bytes);
}

RefitStats RefitTransaction::commit() {
  const std::lock_guard lock(mutex_);
  auto host_lock = enter();
  const std::string wrong = manifest_.verdict();
  if (!wrong.empty()) {
    const std::string message = fmt::format("{} is refused: {}", subject(), wrong);
    if (host_lock) host_lock.unlock();
    end(message);
    throw Error(message);
  }
  const bool staged = options_.mode == RefitMode::kDoubleBuffered;
  for (const WeightEntry& entry : weights_.table()) {
    if (manifest_.complete(entry)) {
      ++stats_.tensors;
      stats_.bytes_written += entry.place.bytes();
    } else if (staged) {
      weights_.memory().copy_from_live(entry.place);
    }
  }
  Clock::time_point pause = begin_;
  const auto install = [&] {
    if (!staged) return;
    pause = Clock::now();
    weights_.memory().install();
  };
  if (host_) {
    host_->commit(options_, install);
  } else {
    install();
  }
  over_ = true;
  stats_.pause_seconds = seconds_since(pause);
  stats_.seconds = seconds_since(begin_);
  return stats_;
}

void RefitTransaction::abort(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (!over_) end(fmt::format("{} failed: {}", subject(), reason));
}

// Without a change. mutex_ is held, the host's is not.
void RefitTransaction::end(const std::string& reason) {
  over_ = true;
  staging_.clear();
  if (options_.mode == RefitMode::kDoubleBuffered) {
    try {
      const auto host_lock = host_ ? host_->enter() : std::unique_lock<std::mutex>();
      weights_.memory().discard();
    } catch (const Error&) {  // the engine has gone, and the memory with it
    }
  }
  if (host_) host_->abort(dirty_, reason);
}

}  // namespace octavo
