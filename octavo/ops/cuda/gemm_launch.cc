#include "octavo/ops/cuda/gemm_launch.h"

#include <cuda.h>

#include <algorithm>
#include <cassert>

#include "octavo/base/error.h"
#include "octavo/quant/cuda/device.h"

namespace octavo::cuda {
namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found at run time so that nothing links against the driver.
EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
        "cuTensorMapEncodeTiled");
    if (found == nullptr)
      fail_system("the CUDA driver has no cuTensorMapEncodeTiled: it is older than CUDA 12");
    return reinterpret_cast<EncodeTiled>(found);
  }();
  return function;
}

bool aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

template <typename Element, int kTokens>
void launch_narrow(const GemmTask& task, const GemmPlan& plan, bool early, cudaStream_t stream) {
  const auto run = plan.groups == 1   ? launch_gemm<Element, kTokens, 1, 1>
                   : plan.groups == 2 ? launch_gemm<Element, kTokens, 2, 1>
                                      : launch_gemm<Element, kTokens, 4, 1>;
  run(task, plan.shared_bytes(), early, stream);
}

template <std::size_t kDims>
CUtensorMap encode(const void* data, int element_bytes, const cuuint64_t (&sizes)[kDims],
                   const cuuint64_t (&strides)[kDims - 1], const cuuint32_t (&box)[kDims],
                   bool swizzled = true) {
  CUtensorMap map;
  cuuint32_t steps[kDims];
  std::fill_n(steps, kDims, 1);
  const CUresult status = encode_tiled()(
      &map,
      element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
      : element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                           : CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
      kDims, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    fail_system("tensor map of {} rows in boxes of {}: CUDA driver error {}", sizes[1], box[1],
                static_cast<int>(status));
  return map;
}

// Boxes of 64 tokens (or of all, if fewer) × `rows` of a tall GEMM's result.
CUtensorMap result_map(const bf16* y, std::int64_t tokens, std::int64_t out, std::int64_t stride, int rows) {
  return encode<2>(
      y, sizeof(bf16), {static_cast<cuuint64_t>(out), static_cast<cuuint64_t>(tokens)},
      {static_cast<cuuint64_t>(stride) * sizeof(bf16)},
      {static_cast<cuuint32_t>(rows), static_cast<cuuint32_t>(std::min<std::int64_t>(tokens, 64))},
      rows == 64);
}

// Boxes of kScaleBoxSteps steps × box_tokens of the tokens' scales [tokens, scale_pitch(cols)].
CUtensorMap scale_map(const float* scales, std::int64_t tokens, std::int64_t cols, int box_tokens) {
  return encode<2>(scales, sizeof(float),
                   {static_cast<cuuint64_t>(blocks_of(cols)), static_cast<cuuint64_t>(tokens)},
                   {static_cast<cuuint64_t>(scale_pitch(cols)) * sizeof(float)},
                   {kScaleBoxSteps, static_cast<cuuint32_t>(box_tokens)}, false);
}

}  // namespace

CUtensorMap tensor_map(const void* data, int element_bytes, std::int64_t rows, std::int64_t cols,
                       int box_rows) {
  return encode<2>(data, element_bytes, {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)},
                   {static_cast<cuuint64_t>(cols * element_bytes)},
                   {static_cast<cuuint32_t>(kStepBytes / element_bytes), static_cast<cuuint32_t>(box_rows)});
}
CUtensorMap stage_map(const void* data, std::int64_t rows, std::int64_t cols, int box_rows, int box_steps) {
  return encode<3>(data, 1,
                   {kStepBytes, static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(cols / kStepBytes)},
                   {static_cast<cuuint64_t>(cols), kStepBytes},
                   {kStepBytes, static_cast<cuuint32_t>(box_rows), static_cast<cuuint32_t>(box_steps)});
}

void check_operands(const GemmOperands& g) {
  if (g.out <= 0 || g.out % 16 != 0 || g.in <= 0 || g.in * g.element_bytes % 16 != 0)
    fail(
        "{} linear layer [{}, {}]: on the GPU its outputs must be a multiple of 16, and its inputs one of {}",
        g.kind, g.out, g.in, 16 / g.element_bytes);
  if (g.y_stride < g.out || g.y_stride % 8 != 0)
    fail(
        "{} linear layer [{}, {}]: rows of the result are {} apart; it must be a multiple of 8 and at least "
        "{}",
        g.kind, g.out, g.in, g.y_stride, g.out);
  if (!aligned(g.weight) || !aligned(g.x) || !aligned(g.x_scales) || !aligned(g.y))
    fail(
        "{} linear layer [{}, {}]: weight, input (and its scales) and result must begin at multiples of 16 "
        "bytes",
        g.kind, g.out, g.in);
}

GemmTask gemm_task(const GemmOperands& g, const GemmPlan& plan) {
  assert(plan.gated || plan.cluster == 1);
  GemmTask task{};
  task.weight_map =
      tensor_map(g.weight, g.element_bytes, g.out, g.in, plan.gated ? plan.rows / 2 : plan.rows);
  task.token_box = plan.token_box(g.tokens);
  task.token_map = tensor_map(g.x, g.element_bytes, g.tokens, g.in, task.token_box);
  if (plan.tall) {
    task.scale_map = scale_map(g.x_scales, g.tokens, g.in, task.token_box);
    if (!plan.gated)
      task.y_map = result_map(static_cast<const bf16*>(g.y), g.tokens, g.out, g.y_stride,
                              result_box(plan.rows_of_unit()));
  }
  task.y_stride = g.y_stride;
  task.tokens = static_cast<int>(g.tokens);
  task.out = static_cast<int>(g.out);
  task.steps = static_cast<int>((g.in * g.element_bytes + kStepBytes - 1) / kStepBytes);
  task.stages = (task.steps + plan.steps() - 1) / plan.steps();
  task.rows = plan.rows;
  task.cluster = plan.cluster;
  task.row_items = static_cast<int>(plan.row_tiles(g.out));
  task.token_items = static_cast<int>((plan.token_tiles(g.tokens) + plan.cluster - 1) / plan.cluster);
  task.row_band = plan.row_band(g.tokens, g.in * g.element_bytes);
  if (g.seats != nullptr &&
      takes_seats(plan, g.out, g.tokens, g.seats->seats().table.seats(), multiprocessors()))
    task.seats = g.seats->seats();
  task.weight_stages = plan.tall ? plan.stages_for(task.steps) : plan.weight_stages;
  task.token_stages = plan.token_stages;
  assert(std::min(task.weight_stages, task.token_stages) >= kMinStages);
  return task;
}

template <>
void launch_planned<E4M3>(const GemmTask& task, const GemmPlan& plan, bool early, cudaStream_t stream) {
  if (plan.tall) return launch_tall_gemm(task, plan, early, stream);
  if (plan.tokens == 8) return launch_narrow<E4M3, 8>(task, plan, early, stream);
  assert(plan.tokens == 16);
  launch_narrow<E4M3, 16>(task, plan, early, stream);
}
template <>
void launch_planned<BF16>(const GemmTask& task, const GemmPlan& plan, bool early, cudaStream_t stream) {
  switch (plan.tokens) {
    case 8:
      return launch_narrow<BF16, 8>(task, plan, early, stream);
    case 16:
      return launch_narrow<BF16, 16>(task, plan, early, stream);
    case 32:
      return launch_narrow<BF16, 32>(task, plan, early, stream);
    case 64:
      return launch_narrow<BF16, 64>(task, plan, early, stream);
    default:
      break;
  }
  const auto run = plan.groups == 1      ? launch_gemm<BF16, 128, 1, 1>
                   : plan.per_group == 1 ? launch_gemm<BF16, 128, 2, 1>
                                         : launch_gemm<BF16, 128, 2, 2>;
  run(task, plan.shared_bytes(), early, stream);
}

}  // namespace octavo::cuda
