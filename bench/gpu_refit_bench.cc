// A whole model's weights renewed from bf16 tensors on the same GPU, and sleep: what they take in time and
// memory. Every number of the result is checked against tensors that come from the host.
//
//   gpu_refit_bench [shape]      default: llama-3.1-8b
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <string>
#include <vector>

#include "bench/bench_main.h"
#include "octavo/base/error.h"
#include "octavo/engine/device.h"
#include "octavo/model/model.h"
#include "octavo/ops/cuda/cuda_ops.h"
#include "octavo/refit/random_weights.h"
#include "octavo/refit/transaction.h"

namespace octavo {
namespace {

using cuda::check;
using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}
double gib(std::size_t bytes) { return static_cast<double>(bytes) / 0x1p30; }

// What lies at the entry's place. The region begins with the embedding.
std::vector<std::byte> contents(const Weights& weights, const WeightEntry& entry) {
  const bool fp8 = entry.fp8();
  const std::size_t element = fp8 ? 1 : entry.matrix() ? 2 : 4;
  std::vector<std::byte> out(static_cast<std::size_t>(entry.place.rows * entry.place.cols) * element);
  const auto* const base =
      static_cast<const std::byte*>(weights.embedding().data) - weights.table().front().place.data;
  check(cudaMemcpy(out.data(), base + entry.place.data, out.size(), cudaMemcpyDeviceToHost),
        "copy of weights");
  return out;
}

void run(const std::string& shape) {
  ThreadPool pool;
  Device device = make_device("cuda", pool);
  Model model(spec_of_shape(shape), {}, std::move(device.weights), *device.storage);
  Weights& weights = model.weights();

  // The trainer's tensors: one run of random values, from another place for each tensor.
  std::size_t largest = 0;
  std::size_t total = 0;
  for (const WeightEntry& entry : weights.table()) {
    const auto bytes = static_cast<std::size_t>(entry.place.rows * entry.place.cols) * sizeof(bf16);
    largest = std::max(largest, bytes);
    total += (bytes + 255) / 256 * 256;
  }
  std::mt19937_64 random(1);
  std::vector<bf16> values(largest / sizeof(bf16));
  for (std::size_t i = 0; i < values.size(); ++i)  // magnitudes from 2^-7 to 2, either sign
    values[i].bits = static_cast<std::uint16_t>(0x3c00 + random() % 0x400 + (random() % 2 << 15));
  const cuda::DeviceBuffer source(total);
  std::vector<NamedTensor> tensors;
  std::size_t at = 0;
  for (const WeightEntry& entry : weights.table()) {
    const auto bytes = static_cast<std::size_t>(entry.place.rows * entry.place.cols) * sizeof(bf16);
    check(cudaMemcpy(source.data() + at, values.data(), bytes, cudaMemcpyHostToDevice), "copy of tensors");
    auto shape_of =
        entry.matrix() ? std::vector{entry.place.rows, entry.place.cols} : std::vector{entry.place.cols};
    tensors.push_back({entry.name, {source.data() + at, DType::kBF16, std::move(shape_of), 0, true}});
    at += (bytes + 255) / 256 * 256;
  }

  const std::size_t before = device.storage->room()->free;
  std::size_t least = before;
  std::vector<double> times;
  for (int i = 0; i < 8; ++i) {
    check(cudaDeviceSynchronize(), "device");
    const auto start = Clock::now();
    RefitTransaction refit(weights, pool, {.version = static_cast<std::uint64_t>(i)});
    refit.put(tensors);
    refit.commit();
    times.push_back(ms_since(start));
    least = std::min(least, device.storage->room()->free);
  }
  fmt::print("{}: {:.2f} GB of bf16 tensors to {:.2f} GB of weights, {} tensors\n", shape,
             static_cast<double>(total) / 1e9, static_cast<double>(weights.bytes()) / 1e9, tensors.size());
  fmt::print("first {:.2f} ms, then {:.2f} ms (median of {}); extra memory {:.1f} MiB\n", times[0],
             (std::nth_element(times.begin() + 1, times.begin() + 4, times.end()), times[4]),
             times.size() - 1, static_cast<double>(before - least) / 0x1p20);

  // The same tensors from the host must leave the same bytes.
  std::size_t checked = 0;
  for (std::size_t i = 0; i < tensors.size(); i += 13) {
    const WeightEntry& entry = weights.table()[i];
    const auto got = contents(weights, entry);
    TensorView host = tensors[i].tensor;
    host.data = values.data();
    host.on_device = false;
    const WeightPiece piece{.place = &entry.place, .values = host};
    if (weights.memory().write({&piece, 1}, weights.options().scaling, pool).front())
      fail("a value is not finite");
    if (contents(weights, entry) != got) fail("'{}' differs from its refit by the host", entry.name);
    ++checked;
  }
  fmt::print("{} tensors have the bytes that they get from the host\n", checked);

  const auto memory = device.storage->allocate(std::size_t{8} << 30);
  const std::size_t awake = device.storage->room()->free;
  auto start = Clock::now();
  memory->release();
  const double release_ms = ms_since(start);
  const std::size_t asleep = device.storage->room()->free;
  start = Clock::now();
  memory->restore();
  fmt::print("8 GiB: free {:.2f} GiB awake, {:.2f} asleep ({:.1f} ms), {:.2f} awake again ({:.1f} ms)\n",
             gib(awake), gib(asleep), release_ms, gib(device.storage->room()->free), ms_since(start));
}

}  // namespace
}  // namespace octavo

int main(int argc, char** argv) {
  return octavo::bench_main("gpu_refit_bench", [&] {
    octavo::need_gpu();
    octavo::run(argc > 1 ? argv[1] : "llama-3.1-8b");
  });
}
