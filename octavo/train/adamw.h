// AdamW over the policy's flat parameter buffer (Loshchilov and Hutter 2019, arXiv:1711.05101), and the
// gradient's norm.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "octavo/config/recipe.h"

namespace octavo {

class AdamW {
 public:
  // Moments of zeros, like `values`: FP32, flat, on its device.
  AdamW(const at::Tensor& values, const OptimizerConfig& config);

  // One step with the gradient times `gradient_scale` (of clipping). Decays every parameter, as torch does
  // for one group.
  void step(const at::Tensor& values, const at::Tensor& gradients, double lr, double gradient_scale);

  // What a checkpoint keeps.
  const at::Tensor& first_moment() const { return first_; }
  const at::Tensor& second_moment() const { return second_; }
  std::int64_t steps() const { return steps_; }
  void set_steps(std::int64_t steps) { steps_ = steps; }

 private:
  OptimizerConfig config_;
  at::Tensor first_;
  at::Tensor second_;
  std::int64_t steps_ = 0;
};

// √Σ g², summed in FP64 in an order that does not depend on threads.
double gradient_norm(const at::Tensor& gradients);

}  // namespace octavo
