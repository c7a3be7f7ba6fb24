#include "octavo/quant/cuda/device.h"
#include "octavo/quant/cuda/scaling.cuh"
#include "octavo/quant/cuda/vector_io.cuh"
#include "octavo/quant/cuda/weight_table.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanesPerRow = 16;                   // of eight columns each: the 128 of a block
constexpr int kRowStep = kThreads / kLanesPerRow;  // rows that the block of threads covers at once
constexpr int kSteps = static_cast<int>(kBlock) / kRowStep;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAll = 0xffffffffU;

// Eight values as they lie in memory: a block of them waits in registers until its scale is known, and bf16
// takes half the room of floats.
template <typename T>
struct Packed {  // bf16 and f16
  uint4 raw;
  __device__ void load(const void* p, bool whole, int count) {
    if (whole) {
      raw = __ldcs(static_cast<const uint4*>(p));
      return;
    }
    const auto* values = static_cast<const std::uint16_t*>(p);
    std::uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < count) words[i / 2] |= std::uint32_t{values[i]} << (i % 2 * 16);
    raw = {words[0], words[1], words[2], words[3]};
  }
  // The largest magnitude, as the bits of a float. The order of 16-bit magnitudes is that of integers.
  __device__ std::uint32_t magnitude(bool) const {
    constexpr std::uint32_t kMagnitude = 0x7fff7fffU;
    const std::uint32_t pair = __vmaxu2(__vmaxu2(raw.x & kMagnitude, raw.y & kMagnitude),
                                        __vmaxu2(raw.z & kMagnitude, raw.w & kMagnitude));
    const std::uint32_t largest = max(pair >> 16, pair & 0xffffU);
    if constexpr (std::is_same_v<T, bf16>) return largest << 16;
    return __float_as_uint(__half2float(__ushort_as_half(static_cast<unsigned short>(largest))));
  }
  __device__ void get(float (&v)[8]) const {
    if constexpr (std::is_same_v<T, bf16>) {
      unpack8(raw, v);
    } else {
      const auto* halves = reinterpret_cast<const __half2*>(&raw);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = __half22float2(halves[i]);
        v[2 * i] = pair.x;
        v[2 * i + 1] = pair.y;
      }
    }
  }
};
template <>
struct Packed<float> {
  float values[8];
  __device__ void load(const void* p, bool whole, int count) {
    const auto* floats = static_cast<const float*>(p);
    if (whole) {
      *reinterpret_cast<float4*>(values) = __ldcs(reinterpret_cast<const float4*>(floats));
      *reinterpret_cast<float4*>(values + 4) = __ldcs(reinterpret_cast<const float4*>(floats) + 1);
      return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = i < count ? floats[i] : 0.0F;
  }
  // `as_bf16`: of the values rounded to bf16, where the largest may overflow.
  __device__ std::uint32_t magnitude(bool as_bf16) const {
    std::uint32_t largest = magnitude_bits(values);
    return as_bf16 ? __float_as_uint(low_bf16(pack_bf16(__uint_as_float(largest), 0.0F))) : largest;
  }
  __device__ void get(float (&v)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = values[i];
  }
};

// The last row of the table that begins at or before this block of the grid. Two rounds of 32 probes.
__device__ int find_job(const WeightTableRow* table, int count, unsigned block) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int coarse = (count + 31) / 32;
  const int probe = lane * coarse;
  const unsigned begun = __ballot_sync(kAll, probe < count && table[probe].first_block <= block);
  int first = (31 - __clz(static_cast<int>(begun))) * coarse;
  for (int left = coarse; left > 1; left -= 31) {
    const int fine = first + lane;
    const unsigned here = __ballot_sync(kAll, fine < count && table[fine].first_block <= block);
    const int step = 31 - __clz(static_cast<int>(here));
    first += step;
    if (step < 31) break;
  }
  return first;
}

__device__ std::uint32_t block_max(std::uint32_t value) {
  __shared__ std::uint32_t of_warp[kWarps];
  value = __reduce_max_sync(kAll, value);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  std::uint32_t largest = 0;
#pragma unroll
  for (const std::uint32_t other : of_warp) largest = max(largest, other);
  return largest;
}

// One 128×128 block of one job, held in registers between the search for its largest magnitude and its
// rounding.
template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 4 : 2)
    quantize_kernel(const WeightTableRow* table, int count, ScalingOptions options,
                    unsigned long long* first_bad) {
  const int index = find_job(table, count, blockIdx.x);
  const WeightJob job = table[index].job;
  const std::int64_t block = blockIdx.x - table[index].first_block;
  const std::int64_t block_cols = blocks_of(job.cols);
  const std::int64_t row0 = block / block_cols * kBlock;
  const std::int64_t col = block % block_cols * kBlock + threadIdx.x % kLanesPerRow * 8;
  const int count_here = static_cast<int>(min(std::int64_t{8}, job.cols - col));
  constexpr std::uintptr_t kAlign = 15;
  const bool whole = count_here == 8 && (reinterpret_cast<std::uintptr_t>(job.source) & kAlign) == 0 &&
                     job.row_stride * sizeof(T) % 16 == 0;
  const std::int64_t first_row = row0 + threadIdx.x / kLanesPerRow;

  Packed<T> values[kSteps] = {};
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const std::int64_t row = first_row + i * kRowStep;
    if (row < job.rows && count_here > 0)
      values[i].load(static_cast<const T*>(job.source) + row * job.row_stride + col, whole, count_here);
  }

  const bool as_bf16 = job.target == WeightJob::Target::kBF16;
  std::uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) largest = max(largest, values[i].magnitude(as_bf16));
  largest = block_max(largest);
  float v[8];
  if (largest >= 0x7f800000U) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (values[i].magnitude(as_bf16) < 0x7f800000U) continue;
      values[i].get(v);
      const std::int64_t at = (first_row + i * kRowStep) * job.cols + col;
      for (int j = 7; j >= 0; --j) {
        const float stored = as_bf16 ? low_bf16(pack_bf16(v[j], 0.0F)) : v[j];
        if (!isfinite(stored)) atomicMin(first_bad + index, static_cast<unsigned long long>(at + j));
      }
    }
    return;
  }

  const std::int64_t out_stride = job.out_stride == 0 ? job.cols : job.out_stride;
  const bool store_whole =
      count_here == 8 && out_stride % 8 == 0 && (reinterpret_cast<std::uintptr_t>(job.out) & kAlign) == 0;
  const std::int64_t out_at = first_row * out_stride + col;
  const Scale scale = device_scale(__uint_as_float(largest), options);
  if (job.target == WeightJob::Target::kE4M3 && threadIdx.x == 0)
    job.scales[block / block_cols * job.scale_stride + block % block_cols] = scale.scale;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    if (first_row + i * kRowStep >= job.rows || count_here <= 0) continue;
    values[i].get(v);
    const std::int64_t at = out_at + i * kRowStep * out_stride;
    if (job.target == WeightJob::Target::kE4M3)
      store8(static_cast<std::uint8_t*>(job.out) + at, store_whole, count_here, e4m3x8(v, scale.multiplier));
    else if (job.target == WeightJob::Target::kBF16)
      store8(static_cast<bf16*>(job.out) + at, store_whole, count_here, v);
    else
      store8(static_cast<float*>(job.out) + at, store_whole, count_here, v);
  }
}

}  // namespace

void launch_weight_quantizer(DType dtype, const WeightTableRow* table, int count, unsigned blocks,
                             const ScalingOptions& options, unsigned long long* first_bad,
                             cudaStream_t stream) {
  if (blocks == 0) return;
  if (dtype == DType::kF32)
    quantize_kernel<float><<<blocks, kThreads, 0, stream>>>(table, count, options, first_bad);
  else if (dtype == DType::kBF16)
    quantize_kernel<bf16><<<blocks, kThreads, 0, stream>>>(table, count, options, first_bad);
  else
    quantize_kernel<__half><<<blocks, kThreads, 0, stream>>>(table, count, options, first_bad);
  check(cudaGetLastError(), "weight quantizer launch");
}

}  // namespace octavo::cuda
