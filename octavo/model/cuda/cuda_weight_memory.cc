#include "octavo/model/cuda/cuda_weight_memory.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/error.h"
#include "octavo/model/weight_checksum.h"
#include "octavo/ops/cuda/device_storage.h"
#include "octavo/quant/cuda/weight_quantizer.h"
#include "octavo/quant/e4m3.h"

namespace octavo::cuda {
namespace {

constexpr std::size_t kSlotBytes = std::size_t{16} << 20;

class CudaWeightMemory final : public WeightMemory {
 public:
  CudaWeightMemory() {
    for (Slot& slot : slots_) {
      check(cudaStreamCreateWithFlags(&slot.stream, cudaStreamNonBlocking), "stream");
    }
  }
  ~CudaWeightMemory() override {
    for (const Slot& slot : slots_) {
      cudaStreamDestroy(slot.stream);
    }
  }

  std::byte* allocate(std::size_t bytes) override {
    live_ = std::make_unique<DeviceMemory>(bytes);
    return live_->data();
  }

  // Those that are on the device in one launch for each dtype among them.
  std::vector<std::optional<std::int64_t>> write(std::span<const WeightPiece> pieces,
                                                 const ScalingOptions& scaling, ThreadPool& pool) override {
    std::vector<std::optional<std::int64_t>> bad(pieces.size());
    std::vector<WeightJob> jobs;
    std::vector<std::size_t> owners;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const auto& [place, row, col, values] = pieces[i];
      if (values.on_device) {
        jobs.push_back(job_of(*place, row, col, values));
        owners.push_back(i);
      } else {
        bad[i] = write_from_host(*place, row, col, values, scaling, pool);
      }
    }
    if (jobs.empty()) return bad;
    Slot& slot = slots_.front();
    slot.quantizer.start(jobs, scaling, slot.stream);
    const auto found = slot.quantizer.finish(slot.stream);
    for (std::size_t i = 0; i < owners.size(); ++i) bad[owners[i]] = found[i];
    return bad;
  }

  std::optional<std::int64_t> write_codes(const WeightPlace& place, std::int64_t row, const TensorView& codes,
                                          const float* scales, ThreadPool&) override {
    if (codes.on_device)
      fail("FP8 weights in GPU memory cannot be taken over; hand them over in host memory");
    const std::int64_t rows = codes.rows();
    const std::int64_t cols = codes.cols();
    for (std::int64_t r = 0; r < rows; ++r) {
      const auto* const line = reinterpret_cast<const std::uint8_t*>(codes.row(r));
      for (std::int64_t c = 0; c < cols; ++c)
        if ((line[c] & 0x7f) == kE4M3Nan) return r * cols + c;
    }
    check_arrived(
        cudaMemcpy2D(at<std::uint8_t>(place.data) + row * place.cols, static_cast<std::size_t>(place.cols),
                     codes.data, static_cast<std::size_t>(codes.stride()), static_cast<std::size_t>(cols),
                     static_cast<std::size_t>(rows), cudaMemcpyHostToDevice),
        "copy of codes");
    check_arrived(
        cudaMemcpy(scales_of(place, row), scales,
                   static_cast<std::size_t>(blocks_of(rows) * blocks_of(place.cols)) * sizeof(float),
                   cudaMemcpyHostToDevice),
        "copy of scales");
    return std::nullopt;
  }

  void stage() override { staged_ = std::make_unique<DeviceMemory>(live_->bytes()); }
  void copy_from_live(const WeightPlace& place) override {
    const auto copy = [&](std::size_t at, std::int64_t bytes) {
      check(cudaMemcpy(staged_->data() + at, live_->data() + at, static_cast<std::size_t>(bytes),
                       cudaMemcpyDeviceToDevice),
            "copy of weights that stay");
    };
    copy(place.data, place.rows * place.cols * place.element_bytes());
    if (place.scale_bytes() > 0) copy(place.scales, place.scale_bytes());
  }
  void install() override {
    check(cudaDeviceSynchronize(), "end of all work before the weights change");
    live_->take_pages(*staged_);
    staged_.reset();
  }
  void discard() override { staged_.reset(); }

  std::uint64_t checksum(const WeightPlace& place, ThreadPool& pool) const override {
    const auto download = [&](void* to, std::size_t at, std::int64_t bytes) {
      check(cudaMemcpy(to, live_->data() + at, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost),
            "copy of weights for their checksum");
    };
    // Some rows of blocks at a time: the embedding of a large model does not have to be on the host as a
    // whole.
    const std::int64_t row_bytes = place.cols * place.element_bytes();
    const std::int64_t step =
        std::max<std::int64_t>(1, static_cast<std::int64_t>(kSlotBytes) / row_bytes / kBlock) * kBlock;
    std::vector<std::byte> rows(static_cast<std::size_t>(std::min(step, place.rows) * row_bytes));
    std::vector<float> scales(static_cast<std::size_t>(place.scale_bytes()) / sizeof(float));
    if (!scales.empty()) download(scales.data(), place.scales, place.scale_bytes());
    std::uint64_t sum = 0;
    for (std::int64_t row = 0; row < place.rows; row += step) {
      const std::int64_t count = std::min(step, place.rows - row);
      download(rows.data(), place.data + static_cast<std::size_t>(row * row_bytes), count * row_bytes);
      sum += checksum_of_piece(place, row, 0, count, place.cols, CodeLayout::kRowMajor, rows.data(),
                               scales.data() + row / kBlock * blocks_of(place.cols), pool);
    }
    return sum;
  }

  void sleep(bool keep_copy) override {
    check(cudaDeviceSynchronize(), "end of all work before the weights sleep");
    copy_ = Buffer(keep_copy ? live_->bytes() : 0);
    if (keep_copy)
      check(cudaMemcpy(copy_.data(), live_->data(), live_->bytes(), cudaMemcpyDeviceToHost),
            "copy of the weights to the host");
    live_->release();
  }
  bool wake() override {
    live_->restore();
    if (copy_.bytes() == 0) return false;
    check(cudaMemcpy(live_->data(), copy_.data(), live_->bytes(), cudaMemcpyHostToDevice),
          "copy of the weights from the host");
    copy_ = Buffer();
    return true;
  }

 private:
  // A piece on its way from the host: filled, copied and quantized while the other one is filled.
  struct Slot {
    PinnedBuffer host;
    DeviceBuffer device;
    cudaStream_t stream = nullptr;
    WeightQuantizer quantizer;
    bool busy = false;
    std::int64_t first = 0;  // flat index of the piece's first element in its tensor
  };

  // In the region that is written to.
  template <typename T>
  T* at(std::size_t bytes) const {
    return reinterpret_cast<T*>((staged_ ? staged_ : live_)->data() + bytes);
  }
  float* scales_of(const WeightPlace& place, std::int64_t row) const {
    return at<float>(place.scales) + row / kBlock * blocks_of(place.cols);
  }

  // `values` are on the device.
  WeightJob job_of(const WeightPlace& place, std::int64_t row, std::int64_t col,
                   const TensorView& values) const {
    WeightJob job;
    job.source = values.data;
    job.dtype = values.dtype;
    job.rows = values.rows();
    job.cols = values.cols();
    job.row_stride = values.stride();
    job.out = at<std::byte>(place.data) +
              static_cast<std::size_t>((row * place.cols + col) * place.element_bytes());
    job.out_stride = place.cols;
    switch (place.form) {
      case WeightPlace::Form::kE4M3:
        job.target = WeightJob::Target::kE4M3;
        job.scales = scales_of(place, row) + col / kBlock;
        job.scale_stride = blocks_of(place.cols);
        break;
      case WeightPlace::Form::kBF16:
        job.target = WeightJob::Target::kBF16;
        break;
      case WeightPlace::Form::kF32:
        job.target = WeightJob::Target::kF32;
        break;
    }
    return job;
  }

  std::optional<std::int64_t> write_from_host(const WeightPlace& place, std::int64_t row, std::int64_t col,
                                              const TensorView& values, const ScalingOptions& scaling,
                                              ThreadPool& pool) {
    const std::int64_t rows = values.rows();
    const std::int64_t cols = values.cols();
    const std::size_t row_bytes = static_cast<std::size_t>(cols) * size_of(values.dtype);
    // Whole blocks of 128 rows, so that a piece's scales are the tensor's.
    const std::int64_t piece =
        std::max<std::int64_t>(
            1, static_cast<std::int64_t>(kSlotBytes / std::max<std::size_t>(row_bytes, 1)) / kBlock) *
        kBlock;
    const std::size_t piece_bytes = static_cast<std::size_t>(std::min(piece, rows)) * row_bytes;
    std::optional<std::int64_t> bad;
    const auto note = [&](std::optional<std::int64_t> other) {
      if (other && (!bad || *other < *bad)) bad = other;
    };
    std::size_t turn = 0;
    for (std::int64_t begin = 0; begin < rows; begin += piece) {
      Slot& slot = slots_[turn++ % slots_.size()];
      note(finish(slot));
      if (slot.host.bytes() < piece_bytes) {
        slot.host = PinnedBuffer(std::max(piece_bytes, kSlotBytes));
        slot.device = DeviceBuffer(std::max(piece_bytes, kSlotBytes));
      }
      const std::int64_t count = std::min(piece, rows - begin);
      pool.parallel_for(count, std::max<std::int64_t>(1, count / (2 * pool.size())),
                        [&](std::int64_t from, std::int64_t to) {
                          for (std::int64_t r = from; r < to; ++r)
                            std::memcpy(slot.host.data() + static_cast<std::size_t>(r) * row_bytes,
                                        values.row(begin + r), row_bytes);
                        });
      check(cudaMemcpyAsync(slot.device.data(), slot.host.data(), static_cast<std::size_t>(count) * row_bytes,
                            cudaMemcpyHostToDevice, slot.stream),
            "copy of weights");
      const WeightJob job =
          job_of(place, row + begin, col, {slot.device.data(), values.dtype, {count, cols}, 0, true});
      slot.quantizer.start({&job, 1}, scaling, slot.stream);
      slot.busy = true;
      slot.first = begin * cols;
    }
    for (Slot& slot : slots_) note(finish(slot));
    return bad;
  }

  static std::optional<std::int64_t> finish(Slot& slot) {
    if (!std::exchange(slot.busy, false)) return std::nullopt;
    const auto bad = slot.quantizer.finish(slot.stream).front();
    return bad ? std::optional(slot.first + *bad) : std::nullopt;
  }

  std::unique_ptr<DeviceMemory> live_;
  std::unique_ptr<DeviceMemory> staged_;  // null: not staging
  Buffer copy_;                           // of sleeping weights
  std::array<Slot, 2> slots_;
};

}  // namespace

std::unique_ptr<WeightMemory> make_weight_memory() { return std::make_unique<CudaWeightMemory>(); }

}  // namespace octavo::cuda
