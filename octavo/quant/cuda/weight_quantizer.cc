#include "octavo/quant/cuda/weight_quantizer.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "octavo/base/error.h"
#include "octavo/quant/cuda/weight_table.h"

namespace octavo::cuda {

void WeightQuantizer::start(std::span<const WeightJob> jobs, const ScalingOptions& options,
                            cudaStream_t stream) {
  order_.resize(jobs.size());
  std::iota(order_.begin(), order_.end(), std::size_t{0});
  std::stable_sort(order_.begin(), order_.end(),
                   [&](std::size_t a, std::size_t b) { return jobs[a].dtype < jobs[b].dtype; });
  bad_offset_ = jobs.size() * sizeof(WeightTableRow);
  const std::size_t bytes = bad_offset_ + jobs.size() * sizeof(unsigned long long);
  host_table_.assign(bytes, std::byte{0xff});  // no bad element is found yet
  if (device_table_.bytes() < bytes) device_table_ = DeviceBuffer(bytes);

  struct Launch {
    DType dtype;
    std::size_t first;
    int count;
    unsigned blocks;
  };
  std::vector<Launch> launches;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const WeightJob& job = jobs[order_[i]];
    if (job.dtype == DType::kF8E4M3)
      fail("weights of type {} cannot be quantized: give F32, BF16 or F16", name_of(job.dtype));
    if (launches.empty() || launches.back().dtype != job.dtype) launches.push_back({job.dtype, i, 0, 0});
    const WeightTableRow row{job, launches.back().blocks};
    std::memcpy(host_table_.data() + i * sizeof row, &row, sizeof row);
    launches.back().blocks += static_cast<unsigned>(blocks_of(job.rows) * blocks_of(job.cols));
    ++launches.back().count;
  }
  check(cudaMemcpyAsync(device_table_.data(), host_table_.data(), bytes, cudaMemcpyHostToDevice, stream),
        "copy of the weight table");
  for (const Launch& launch : launches) {
    const WeightTableRow* table = device_table_.data<WeightTableRow>() + launch.first;
    auto* bad = reinterpret_cast<unsigned long long*>(device_table_.data() + bad_offset_) + launch.first;
    launch_weight_quantizer(launch.dtype, table, launch.count, launch.blocks, options, bad, stream);
  }
}

std::vector<std::optional<std::int64_t>> WeightQuantizer::finish(cudaStream_t stream) {
  std::vector<unsigned long long> bad(order_.size());
  check(cudaMemcpyAsync(bad.data(), device_table_.data() + bad_offset_, bad.size() * sizeof bad[0],
                        cudaMemcpyDeviceToHost, stream),
        "copy of the weight check");
  check(cudaStreamSynchronize(stream), "weight quantizer");
  std::vector<std::optional<std::int64_t>> out(order_.size());
  for (std::size_t i = 0; i < bad.size(); ++i)
    if (bad[i] != ~0ULL) out[order_[i]] = static_cast<std::int64_t>(bad[i]);
  return out;
}

}  // namespace octavo::cuda
