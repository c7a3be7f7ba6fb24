#include "octavo/train/adamw.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <vector>

namespace octavo {
namespace {

struct Coefficients {
  float decay;  // what weight decay leaves of a value
  float beta1, beta2;
  float step_size;                // lr / (1 - beta1^t)
  float inverse_root_correction;  // 1 / √(1 - beta2^t)
  float eps;
  float gradient_scale;
};

// One pass over memory; the loop is vectorized by the compiler.
void step_cpu(const Coefficients& c, std::int64_t count, float* values, const float* gradients, float* first,
              float* second) {
  at::parallel_for(0, count, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const float g = gradients[i] * c.gradient_scale;
      first[i] = c.beta1 * first[i] + (1 - c.beta1) * g;
      second[i] = c.beta2 * second[i] + (1 - c.beta2) * g * g;
      const float root = std::sqrt(second[i]) * c.inverse_root_correction + c.eps;
      values[i] = values[i] * c.decay - c.step_size * first[i] / root;
    }
  });
}

void step_device(const Coefficients& c, const at::Tensor& values, const at::Tensor& gradients,
                 const at::Tensor& first, const at::Tensor& second) {
  const at::Tensor g = gradients * c.gradient_scale;
  first.mul_(c.beta1).add_(g, 1 - c.beta1);
  second.mul_(c.beta2).addcmul_(g, g, 1 - c.beta2);
  const at::Tensor root = second.sqrt().mul_(c.inverse_root_correction).add_(c.eps);
  values.mul_(c.decay).addcdiv_(first, root, -c.step_size);
}

}  // namespace

AdamW::AdamW(const at::Tensor& values, const OptimizerConfig& config)
    : config_(config), first_(at::zeros_like(values)), second_(at::zeros_like(values)) {}

void AdamW::step(const at::Tensor& values, const at::Tensor& gradients, double lr, double gradient_scale) {
  ++steps_;
  const auto t = static_cast<double>(steps_);
  const double beta1 = config_.betas[0];
  const double beta2 = config_.betas[1];
  const Coefficients c{
      .decay = static_cast<float>(1 - lr * config_.weight_decay),
      .beta1 = static_cast<float>(beta1),
      .beta2 = static_cast<float>(beta2),
      .step_size = static_cast<float>(lr / (1 - std::pow(beta1, t))),
      .inverse_root_correction = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, t))),
      .eps = static_cast<float>(config_.eps),
      .gradient_scale = static_cast<float>(gradient_scale),
  };
  if (values.is_cpu())
    step_cpu(c, values.numel(), values.mutable_data_ptr<float>(), gradients.const_data_ptr<float>(),
             first_.mutable_data_ptr<float>(), second_.mutable_data_ptr<float>());
  else
    step_device(c, values, gradients, first_, second_);
}

double gradient_norm(const at::Tensor& gradients) {
  if (!gradients.is_cpu()) return gradients.norm().item<double>();
  constexpr std::int64_t kChunk = 1 << 16;
  const std::int64_t count = gradients.numel();
  const float* values = gradients.const_data_ptr<float>();
  std::vector<double> sums(static_cast<std::size_t>((count + kChunk - 1) / kChunk));
  at::parallel_for(0, static_cast<std::int64_t>(sums.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      // Four sums, since a single one is a chain of additions.
      double sum[4] = {};
      const std::int64_t last = std::min(count, (chunk + 1) * kChunk);
      for (std::int64_t i = chunk * kChunk; i < last; ++i)
        sum[i % 4] += static_cast<double>(values[i]) * static_cast<double>(values[i]);
      sums[static_cast<std::size_t>(chunk)] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return std::sqrt(total);
}

}  // namespace octavo
