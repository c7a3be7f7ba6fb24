#include "octavo/refit/transaction.h"

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

std::int64_t bytes_of(const WeightEntry& entry) {
  const std::int64_t elements = entry.place.rows * entry.place.cols;
  switch (entry.place.form) {
    case WeightPlace::Form::kF32:
      return elements * 4;
    case WeightPlace::Form::kBF16:
      return elements * 2;
    case WeightPlace::Form::kE4M3:
      return elements + blocks_of(entry.place.rows) * blocks_of(entry.place.cols) * 4;
  }
  return 0;
}

}  // namespace

RefitTransaction::RefitTransaction(Weights& weights, ThreadPool& pool, RefitOptions options,
                                   std::unique_ptr<RefitHost> host)
    : weights_(weights),
      pool_(pool),
      options_(std::move(options)),
      host_(std::move(host)),
      manifest_(weights, options_) {}

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

void RefitTransaction::put(std::string_view name, const TensorView& tensor) {
  const std::lock_guard lock(mutex_);
  const auto host_lock = enter();
  const auto start = Clock::now();
  if (tensor.dtype == DType::kF8E4M3) {
    manifest_.add_problem(
        fmt::format("'{}' is F8_E4M3 without scales; FP8 weights come with '{}_scale_inv'", name, name));
    return;
  }
  const WeightEntry* entry = manifest_.arrive(name, tensor);
  if (entry == nullptr) return;
  write(*entry, tensor);
  stats_.bytes_read += tensor.bytes();
  stats_.write_seconds += seconds_since(start);
}

void RefitTransaction::write(const WeightEntry& entry, const TensorView& values) {
  std::optional<std::int64_t> bad;
  if (manifest_.sound()) {
    dirty_ = true;
    bad = weights_.memory().write(entry.place, 0, 0, values, weights_.options().scaling, pool_);
    stats_.bytes_written += bytes_of(entry);
  } else {
    bad = first_non_finite(values);
  }
  if (bad) manifest_.refuse_value(entry, *bad / values.cols(), *bad % values.cols());
}

void RefitTransaction::put_fp8(std::string_view name, const TensorView& codes, const TensorView& scales) {
  const std::lock_guard lock(mutex_);
  const auto host_lock = enter();
  const auto start = Clock::now();
  if (codes.dtype != DType::kF8E4M3) {
    manifest_.add_problem(fmt::format("'{}' is {}, but codes must be F8_E4M3", name, name_of(codes.dtype)));
    return;
  }
  const WeightEntry* entry = manifest_.arrive(name, codes);
  if (entry == nullptr) return;
  if (!entry->matrix()) {
    manifest_.add_problem(fmt::format("'{}' is F8_E4M3, but a norm or bias must be bf16 or f32", name));
    return;
  }
  const std::vector<std::int64_t> want = {blocks_of(codes.rows()), blocks_of(codes.cols())};
  if (scales.shape != want || (scales.dtype != DType::kF32 && scales.dtype != DType::kBF16)) {
    manifest_.add_problem(fmt::format("'{}_scale_inv' is {} {}, but 128x128 blocks of {} need {} F32 or BF16",
                                      name, shape_string(scales.shape), name_of(scales.dtype),
                                      shape_string(codes.shape), shape_string(want)));
    return;
  }
  write_codes(*entry, codes, scales);
  stats_.bytes_read += codes.bytes() + scales.bytes();
  stats_.write_seconds += seconds_since(start);
}

void RefitTransaction::write_codes(const WeightEntry& entry, const TensorView& codes,
                                   const TensorView& scales) {
  std::vector<float> values;
  for (std::int64_t r = 0; r < scales.rows(); ++r) {
    for (std::int64_t c = 0; c < scales.cols(); ++c) {
      values.push_back(element_as_float(scales, r, c));
      if (std::isfinite(values.back()) && values.back() > 0) continue;
      manifest_.add_problem(fmt::format("'{}_scale_inv' holds {} at [{}, {}]; a scale is positive and finite",
                                        entry.name, values.back(), r, c));
      return;
    }
  }
  if (!manifest_.sound()) return;
  dirty_ = true;
  WeightMemory& memory = weights_.memory();
  stats_.bytes_written += bytes_of(entry);
  if (entry.fp8()) {
    if (const auto bad = memory.write_codes(entry.place, 0, codes, values.data(), pool_))
      manifest_.refuse_value(entry, *bad / codes.cols(), *bad % codes.cols());
    return;
  }
  // Kept in bf16: a strip of 128 rows at a time, so that no second copy of the matrix is made.
  const std::int64_t cols = codes.cols();
  std::vector<std::uint8_t> dense(static_cast<std::size_t>(kBlock * cols));
  std::vector<float> strip(dense.size());
  for (std::int64_t begin = 0; begin < codes.rows(); begin += kBlock) {
    const std::int64_t count = std::min(kBlock, codes.rows() - begin);
    const TensorView piece{codes.row(begin), codes.dtype, {count, cols}, codes.row_stride};
    auto bad = copy_codes(piece, CodeLayout::kRowMajor, dense.data(), pool_);
    if (!bad) {
      dequantize_weight(dense.data(), CodeLayout::kRowMajor, count, cols,
                        values.data() + begin / kBlock * scales.cols(), scales.cols(), strip.data());
      bad = memory.write(entry.place, begin, 0, {strip.data(), DType::kF32, {count, cols}, 0},
                         weights_.options().scaling, pool_);
    }
    if (bad) return manifest_.refuse_value(entry, begin + *bad / cols, *bad % cols);
  }
}

RefitStats RefitTransaction::commit() {
  std::unique_lock lock(mutex_);
  auto host_lock = enter();
  const std::string wrong = manifest_.verdict();
  if (!wrong.empty()) {
    const std::string message = fmt::format("{} is refused: {}", subject(), wrong);
    if (host_lock) host_lock.unlock();
    end(message);
    throw Error(message);
  }
  if (host_) host_->commit(options_, {});
  over_ = true;
  stats_.tensors = manifest_.complete_tensors();
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
  if (host_) host_->abort(dirty_, reason);
}

}  // namespace octavo
