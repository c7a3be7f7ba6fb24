// Fresh random inputs for the GPU tests; the seed is printed with every failure.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "octavo/base/dtype.h"

namespace octavo {

class GpuRandom {
 public:
  GpuRandom() : seed_(std::random_device{}()), engine_(seed_) {}
  unsigned seed() const { return seed_; }
  std::mt19937& engine() { return engine_; }
  std::int64_t in(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  float normal(float scale = 1.0F) { return std::normal_distribution<float>(0, scale)(engine_); }
  std::vector<float> floats(std::int64_t count, float scale = 1.0F) {
    std::vector<float> out(static_cast<std::size_t>(count));
    for (float& v : out) v = normal(scale);
    return out;
  }
  std::vector<bf16> values(std::int64_t count, float scale = 1.0F) {
    std::vector<bf16> out(static_cast<std::size_t>(count));
    for (bf16& v : out) v = to_bf16(normal(scale));
    return out;
  }

 private:
  unsigned seed_;
  std::mt19937 engine_;
};

}  // namespace octavo
