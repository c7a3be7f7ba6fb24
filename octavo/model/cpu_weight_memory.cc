#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <utility>

#include "octavo/base/buffer.h"
#include "octavo/base/error.h"
#include "octavo/model/weight_checksum.h"
#include "octavo/model/weight_memory.h"
#include "octavo/quant/element.h"
#include "octavo/quant/weight_quantizer.h"

namespace octavo {
namespace {

constexpr CodeLayout kLayout = CodeLayout::kTiled;

std::optional<std::int64_t> write_vector(float* out, const TensorView& values) {
  for (std::int64_t c = 0; c < values.cols(); ++c) {
    out[c] = element_as_float(values, 0, c);
    if (!std::isfinite(out[c])) return c;
  }
  return std::nullopt;
}

// A file that has no name any more, so that nothing is left of it whatever happens.
class NamelessFile {
 public:
  NamelessFile() {
    std::string path = (std::filesystem::temp_directory_path() / "octavo-weights-XXXXXX").string();
    fd_ = mkostemp(path.data(), O_CLOEXEC);
    if (fd_ < 0)
      fail_system("cannot make a file '{}' for the sleeping weights: {}", path, std::strerror(errno));
    unlink(path.c_str());
  }
  ~NamelessFile() { close(fd_); }
  NamelessFile(const NamelessFile&) = delete;
  NamelessFile& operator=(const NamelessFile&) = delete;

  void write(const std::byte* data, std::size_t bytes) {
    transfer(bytes, "write", [&](std::size_t done) {
      return pwrite(fd_, data + done, bytes - done, static_cast<off_t>(done));
    });
  }
  void read(std::byte* data, std::size_t bytes) {
    transfer(bytes, "read", [&](std::size_t done) {
      return pread(fd_, data + done, bytes - done, static_cast<off_t>(done));
    });
  }

 private:
  template <typename Call>
  static void transfer(std::size_t bytes, const char* verb, Call call) {
    for (std::size_t done = 0; done < bytes;) {
      const ssize_t count = call(done);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0)
        fail_system("cannot {} the copy of the sleeping weights in '{}': {}", verb,
                    std::filesystem::temp_directory_path().string(),
                    count == 0 ? "it is cut short" : std::strerror(errno));
      done += static_cast<std::size_t>(count);
    }
  }

  int fd_ = -1;
};

class CpuWeightMemory : public WeightMemory {
 public:
  std::byte* allocate(std::size_t bytes) override {
    live_ = Buffer(bytes);
    return live_.data();
  }

  std::vector<std::optional<std::int64_t>> write(std::span<const WeightPiece> pieces,
                                                 const ScalingOptions& scaling, ThreadPool& pool) override {
    std::vector<std::optional<std::int64_t>> bad(pieces.size());
    std::vector<WeightConversion> conversions;
    std::vector<std::size_t> owners;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const WeightPlace& place = *pieces[i].place;
      const auto& [_, row, col, values] = pieces[i];
      if (values.on_device)
        fail("a tensor in GPU memory cannot become a weight on the CPU; bring it from the host");
      switch (place.form) {
        case WeightPlace::Form::kF32:
          bad[i] = write_vector(at<float>(place.data) + col, values);
          continue;
        case WeightPlace::Form::kBF16:
          conversions.push_back({.source = values,
                                 .out = at<bf16>(place.data) + offset(place, row, col),
                                 .whole_cols = place.cols});
          break;
        case WeightPlace::Form::kE4M3:
          conversions.push_back({.source = values,
                                 .codes = at<std::uint8_t>(place.data) + offset(place, row, col),
                                 .scales = scales_of(place, row) + col / kBlock,
                                 .scale_stride = blocks_of(place.cols),
                                 .whole_cols = place.cols});
          break;
      }
      owners.push_back(i);
    }
    const auto found = convert_weights(conversions, scaling, kLayout, pool);
    for (std::size_t i = 0; i < owners.size(); ++i) bad[owners[i]] = found[i];
    return bad;
  }

  std::optional<std::int64_t> write_codes(const WeightPlace& place, std::int64_t row, const TensorView& codes,
                                          const float* scales, ThreadPool& pool) override {
    const auto bad = copy_codes(codes, kLayout, at<std::uint8_t>(place.data) + offset(place, row, 0), pool);
    if (!bad) std::copy_n(scales, blocks_of(codes.rows()) * blocks_of(place.cols), scales_of(place, row));
    return bad;
  }

  void stage() override { staged_ = Buffer(live_.bytes()); }

  void copy_from_live(const WeightPlace& place) override {
    const bool matrix = place.form != WeightPlace::Form::kF32;
    const auto elements = static_cast<std::int64_t>(
        element_count(matrix ? kLayout : CodeLayout::kRowMajor, place.rows, place.cols));
    std::memcpy(staged_.data() + place.data, live_.data() + place.data,
                static_cast<std::size_t>(elements * place.element_bytes()));
    std::memcpy(staged_.data() + place.scales, live_.data() + place.scales,
                static_cast<std::size_t>(place.scale_bytes()));
  }

  void install() override { live_.take_pages(std::exchange(staged_, Buffer())); }
  void discard() override { staged_ = Buffer(); }

  std::uint64_t checksum(const WeightPlace& place, ThreadPool& pool) const override {
    return checksum_of_piece(place, 0, 0, place.rows, place.cols, kLayout, live_.data() + place.data,
                             reinterpret_cast<const float*>(live_.data() + place.scales), pool);
  }

  // A copy in memory would give nothing back, so it goes to a file.
  void sleep(bool keep_copy) override {
    auto copy = keep_copy ? std::make_unique<NamelessFile>() : nullptr;
    if (copy) copy->write(live_.data(), live_.bytes());
    copy_ = std::move(copy);
    live_.decommit();
  }
  bool wake() override {
    if (!copy_) return false;
    copy_->read(live_.data(), live_.bytes());
    copy_.reset();
    return true;
  }

 private:
  // In the region that is written to.
  template <typename T>
  T* at(std::size_t bytes) {
    Buffer& region = staged_.bytes() > 0 ? staged_ : live_;
    return reinterpret_cast<T*>(region.data() + bytes);
  }
  float* scales_of(const WeightPlace& place, std::int64_t row) {
    return at<float>(place.scales) + row / kBlock * blocks_of(place.cols);
  }
  static std::size_t offset(const WeightPlace& place, std::int64_t row, std::int64_t col) {
    return element_offset(kLayout, place.rows, place.cols, row, col);
  }

  Buffer live_;
  Buffer staged_;  // empty: not staging
  std::unique_ptr<NamelessFile> copy_;
};

}  // namespace

std::unique_ptr<WeightMemory> make_cpu_weight_memory() { return std::make_unique<CpuWeightMemory>(); }

}  // namespace octavo
