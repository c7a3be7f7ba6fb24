#include "octavo/ops/cuda/gemm.h"

#include <cassert>

#include "octavo/ops/cuda/gemm_launch.h"
#include "octavo/quant/block_scaling.h"
#include "octavo/quant/cuda/device.h"

namespace octavo::cuda {

namespace {

// y, or `gated` where there is one.
void run(const Fp8Gemm& g, const GemmPlan& plan, const Activation* gated, cudaStream_t stream) {
  // What stands for y where it is gated is only looked at for its alignment.
  const GemmOperands operands{.kind = "FP8",
                              .element_bytes = 1,
                              .tokens = g.tokens,
                              .out = g.out,
                              .in = g.in,
                              .weight = g.weight,
                              .x = g.x,
                              .x_scales = g.x_scales,
                              .y = gated == nullptr ? g.y : gated->data,
                              .y_stride = gated == nullptr ? g.y_stride : g.out,
                              .seats = g.seats};
  check_operands(operands);
  assert(plan.gated == (gated != nullptr) && (!plan.gated || g.out % (2 * kBlock) == 0));
  GemmTask task = gemm_task(operands, plan);
  task.weight_scales = g.weight_scales;
  task.scale_rows = g.scale_rows;
  task.token_scales = g.x_scales;
  task.bias = g.bias;
  task.y = g.y;
  if (gated != nullptr) {
    task.gated = reinterpret_cast<std::uint8_t*>(gated->data);
    task.gated_scales = gated->scales;
    task.gated_pow2 = gated->pow2;
  }
  launch_planned<E4M3>(task, plan, g.early, stream);
}

}  // namespace

void fp8_gemm(const Fp8Gemm& g, const GemmPlan& plan, cudaStream_t stream) { run(g, plan, nullptr, stream); }

void fp8_gemm(const Fp8Gemm& g, cudaStream_t stream) {
  if (g.tokens == 0) return;
  fp8_gemm(g, plan_fp8_gemm(g.out, g.in, g.tokens, multiprocessors()), stream);
}

bool fp8_gemm_takes_gated(const Fp8Gemm& g, const Activation& gated) {
  return takes_gated(g.out, g.in, g.tokens, multiprocessors()) && g.in % 16 == 0 && gated.cols * 2 == g.out &&
         gated.scales != nullptr;
}
void fp8_gemm_gated(const Fp8Gemm& g, const Activation& gated, const GemmPlan& plan, cudaStream_t stream) {
  run(g, plan, &gated, stream);
}
void fp8_gemm_gated(const Fp8Gemm& g, const Activation& gated, cudaStream_t stream) {
  if (g.tokens == 0) return;
  assert(fp8_gemm_takes_gated(g, gated));
  fp8_gemm_gated(g, gated, plan_gated_gemm(g.out, g.in, g.tokens, multiprocessors()), stream);
}

void bf16_gemm(const Bf16Gemm& g, const GemmPlan& plan, cudaStream_t stream) {
  const GemmOperands operands{.kind = "bf16",
                              .element_bytes = 2,
                              .tokens = g.tokens,
                              .out = g.out,
                              .in = g.in,
                              .weight = g.weight,
                              .x = g.x,
                              .y = g.y_f32 != nullptr ? static_cast<const void*>(g.y_f32) : g.y,
                              .y_stride = g.y_stride == 0 ? g.out : g.y_stride};
  check_operands(operands);
  GemmTask task = gemm_task(operands, plan);
  task.bias = g.bias;
  task.y = g.y;
  task.y_f32 = g.y_f32;
  launch_planned<BF16>(task, plan, g.early, stream);
}

void bf16_gemm(const Bf16Gemm& g, cudaStream_t stream) {
  if (g.tokens == 0) return;
  bf16_gemm(g, plan_bf16_gemm(g.out, g.in, g.tokens, multiprocessors()), stream);
}

}  // namespace octavo::cuda
