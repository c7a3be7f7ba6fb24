// Everything of a decoder layer that is not a linear layer: RMSNorm, rotary embedding, attention, SiLU·mul
// and the activation quantizer. Written on V16, so every instruction set gives the same bits.
#include <algorithm>
#include <cmath>

#include "octavo/base/simd.h"
#include "octavo/ops/cpu/kernels.h"
#include "octavo/quant/block_scaling.h"

namespace octavo::OCTAVO_ISA_NS {
namespace {

// Σ x², sixteen partial sums in a fixed tree; `count` needs no alignment.
template <typename T>
float sum_of_squares(const T* x, std::int64_t count) {
  V16 total = zero();
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const V16 v = load(x + i);
    total = fma(v, v, total);
  }
  if (i < count) {
    const V16 v = load_partial(x + i, static_cast<int>(count - i));
    total = fma(v, v, total);
  }
  return sum(total);
}

float inverse_rms(float squares, std::int64_t count, float eps) {
  return 1.0F / std::sqrt(squares / static_cast<float>(count) + eps);
}

}  // namespace

void rms_norm(const RmsNormTask& task) {
  const std::int64_t cols = task.cols;
  float* x = task.residual;
  float sum_buffer[16];
  V16 total = zero();
  // With write_residual unset the sum residual + delta is formed twice rather than stored.
  const auto value = [&](std::int64_t i, int count) {
    const V16 a = count == 16 ? load(x + i) : load_partial(x + i, count);
    if (task.delta == nullptr) return a;
    return a + (count == 16 ? load(task.delta + i) : load_partial(task.delta + i, count));
  };
  for (std::int64_t i = 0; i < cols; i += 16) {
    const int count = static_cast<int>(std::min<std::int64_t>(16, cols - i));
    const V16 v = value(i, count);
    if (task.write_residual && task.delta != nullptr) {
      if (count == 16) {
        store(x + i, v);
      } else {
        store(sum_buffer, v);
        std::copy_n(sum_buffer, count, x + i);
      }
    }
    total = fma(v, v, total);
  }
  const bool added = task.write_residual && task.delta != nullptr;
  const V16 scale = set1(inverse_rms(sum(total), cols, task.eps));
  for (std::int64_t i = 0; i < cols; i += 16) {
    const int count = static_cast<int>(std::min<std::int64_t>(16, cols - i));
    if (count == 16) {
      const V16 v = added ? load(x + i) : value(i, 16);
      store(task.out + i, v * scale * load(task.weight + i));
    } else {
      const V16 v = added ? load_partial(x + i, count) : value(i, count);
      store_partial(task.out + i, v * scale * load_partial(task.weight + i, count), count);
    }
  }
}

void rope(const RopeTask& task) {
  const std::int64_t half = task.head_dim / 2;
  float scale = 1.0F;
  if (task.norm != nullptr)
    scale = inverse_rms(sum_of_squares(task.head, task.head_dim), task.head_dim, task.eps);
  const auto rotate = [&](std::int64_t i, auto&& get, auto&& put) {
    V16 a = get(task.head + i);
    V16 b = get(task.head + half + i);
    if (task.norm != nullptr) {
      a = a * set1(scale) * get(task.norm + i);
      b = b * set1(scale) * get(task.norm + half + i);
    }
    const V16 cos = get(task.cos + i);
    const V16 sin = get(task.sin + i);
    put(task.head + i, a * cos - b * sin);
    put(task.head + half + i, b * cos + a * sin);
  };
  std::int64_t i = 0;
  for (; i + 16 <= half; i += 16)
    rotate(
        i, [](const auto* p) { return load(p); }, [](bf16* p, V16 v) { store(p, v); });
  if (i < half) {
    const int rest = static_cast<int>(half - i);
    rotate(
        i, [&](const auto* p) { return load_partial(p, rest); },
        [&](bf16* p, V16 v) { store_partial(p, v, rest); });
  }
}

void silu_mul(const bf16* gate, const bf16* up, std::int64_t count, bf16* out) {
  // Beside 1 there is no telling e^-87 from 0; below -88 silu is as good as that of -88, about 5e-37.
  const auto apply = [](V16 g, V16 u) {
    const V16 bounded = max(set1(-88.0F), g);
    return bounded / (set1(1.0F) + exp_bounded(zero() - bounded)) * u;
  };
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(out + i, apply(load(gate + i), load(up + i)));
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    store_partial(out + i, apply(load_partial(gate + i, rest), load_partial(up + i, rest)), rest);
  }
}

namespace {

// The largest magnitude, as the bits of a bf16: as integers, so that a NaN is the largest of all and reaches
// the scale.
std::uint16_t largest_magnitude(const bf16* group, std::int64_t count) {
  const I16 magnitude = iset1(0x7fff7fff);
  I16 largest = iset1(0);
  std::int64_t i = 0;
  for (; i + 32 <= count; i += 32) largest = max_words(largest, load_bits(group + i) & magnitude);
  if (i < count) {
    bf16 rest[32] = {};
    std::copy_n(group + i, count - i, rest);
    largest = max_words(largest, load_bits(rest) & magnitude);
  }
  std::uint16_t lanes[32];
  store_bits(lanes, largest);
  return *std::max_element(lanes, lanes + 32);
}

template <typename Round>
void round_group(bf16* group, std::int64_t count, float multiplier, const Round& round) {
  const V16 factor = set1(multiplier);
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16) store_exact(group + i, round(load(group + i) * factor));
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    store_partial(group + i, round(load_partial(group + i, rest) * factor), rest);
  }
}

}  // namespace

void quantize_row(bf16* row, std::int64_t cols, float* scales, bool pow2) {
  for (std::int64_t begin = 0; begin < cols; begin += kBlock) {
    bf16* group = row + begin;
    const std::int64_t count = std::min(kBlock, cols - begin);
    const bf16 amax{largest_magnitude(group, count)};
    const Scale scale =
        scale_from_amax(to_float(amax), ScalingOptions{.pow2 = pow2, .formula = ScaleFormula::kDivide});
    scales[begin / kBlock] = scale.scale;
    constexpr std::uint16_t kInfinity = 0x7f80;
    if (amax.bits < kInfinity)
      round_group(group, count, scale.multiplier, [](V16 v) { return round_finite_to_e4m3(v); });
    else
      round_group(group, count, scale.multiplier, [](V16 v) { return round_to_e4m3(v); });
  }
}

namespace {

// Sums that stay in registers while attention runs: as many as hide the latency of the multiply-add.
#if OCTAVO_ISA_avx512
constexpr int kWidestRows = 12;
constexpr int kScoreSums = 24;
constexpr int kValueSums = 24;
#else
constexpr int kWidestRows = 6;
constexpr int kScoreSums = 6;
constexpr int kValueSums = 6;
#endif

// scores[r][p] = scale · q[r] · k[p] for the keys of B cache blocks from block `first`, R queries at once.
// Keys lie as weight tiles do: sixteen positions, two dimensions interleaved. A sequence's cache blocks are
// strewn over memory, so what comes next is asked for by hand: the same blocks' values and the next keys.
template <int R, int B>
void score_blocks(const AttentionTask& task, int row, const float (*query)[256], std::int64_t first,
                  std::int64_t blocks) {
  const std::int64_t pairs = task.head_dim / 2;
  const I16 upper = iset1(static_cast<std::int32_t>(0xffff0000U));
  const bf16* keys[B];
  const bf16* values[B];
  const bf16* next_keys[B];
  for (int b = 0; b < B; ++b) {
    keys[b] = task.keys + task.blocks[first + b] * task.block_stride;
    values[b] = task.values + task.blocks[first + b] * task.block_stride;
    next_keys[b] = task.keys + task.blocks[std::min(first + b + B, blocks - 1)] * task.block_stride;
  }
  V16 acc[B][R];
  for (auto& lanes : acc)
    for (V16& lane : lanes) lane = zero();
  // With many rows a query's element is read once for all blocks, with few no more than a
  // block's keys are held.
  constexpr bool kRowsFirst = R >= 6;
  for (std::int64_t p = 0; p < pairs; ++p) {
    V16 odd[B];
    V16 even[B];
    const auto add = [&](int b, int r) {
      acc[b][r] = fma(set1(query[row + r][p * 2 + 1]), odd[b], acc[b][r]);
      acc[b][r] = fma(set1(query[row + r][p * 2]), even[b], acc[b][r]);
    };
    for (int b = 0; b < B; ++b) {
      __builtin_prefetch(values[b] + p * 32);
      __builtin_prefetch(next_keys[b] + p * 32);
      const I16 pair = load_bits(keys[b] + p * 32);
      odd[b] = from_bits(pair & upper);
      even[b] = from_bits(shift_left<16>(pair));
      for (int r = 0; r < R && !kRowsFirst; ++r) add(b, r);
    }
    for (int r = 0; r < R && kRowsFirst; ++r)
      for (int b = 0; b < B; ++b) add(b, r);
  }
  for (int b = 0; b < B; ++b)
    for (int r = 0; r < R; ++r)
      store(task.scores + (row + r) * task.scores_stride + (first + b) * 16, acc[b][r] * set1(task.scale));
}

template <int R>
void score_rows(const AttentionTask& task, int row, const float (*query)[256], std::int64_t blocks) {
  constexpr int kBlocks = std::min(R >= 6 ? 2 : 4, kScoreSums / R);
  std::int64_t first = 0;
  for (; first + kBlocks <= blocks; first += kBlocks)
    score_blocks<R, kBlocks>(task, row, query, first, blocks);
  for (; first < blocks; ++first) score_blocks<R, 1>(task, row, query, first, blocks);
}

// Turns scores[0, context) into exp(score - max) and returns 1 / Σ; the rest of the last sixteen becomes 0.
float softmax_row(float* scores, std::int64_t context) {
  const std::int64_t padded = (context + 15) / 16 * 16;
  for (std::int64_t i = context; i < padded; ++i) scores[i] = -INFINITY;
  V16 largest = set1(-INFINITY);
  for (std::int64_t i = 0; i < padded; i += 16) largest = max(load(scores + i), largest);
  const V16 shift = set1(max_lane(largest));
  V16 total = zero();
  for (std::int64_t i = 0; i < padded; i += 16) {
    const V16 e = exp(load(scores + i) - shift);
    store(scores + i, e);
    total += e;
  }
  return 1.0F / sum(total);
}

// out[r][d] = Σ_p weight[r][p] v[p][d] for V columns [dim, dim + 16·D), positions in rising order.
template <int R, int D>
void weighted_values(const AttentionTask& task, int row, std::int64_t dim, const float* inverse_sums) {
  std::int64_t shared = task.context[row];
  for (int r = 1; r < R; ++r) shared = std::min(shared, task.context[row + r]);
  V16 acc[R][D];
  for (auto& lanes : acc)
    for (V16& lane : lanes) lane = zero();
  const auto value_row = [&](std::int64_t position) {
    return task.values + task.blocks[position / 16] * task.block_stride +
           position % 16 * task.padded_head_dim + dim;
  };
  for (std::int64_t begin = 0; begin < shared; begin += 16) {
    const bf16* values = value_row(begin);
    const std::int64_t count = std::min<std::int64_t>(16, shared - begin);
    for (std::int64_t p = 0; p < count; ++p, values += task.padded_head_dim) {
      V16 v[D];
      for (int d = 0; d < D; ++d) v[d] = load(values + d * 16);
      for (int r = 0; r < R; ++r) {
        const V16 weight = set1(task.scores[(row + r) * task.scores_stride + begin + p]);
        for (int d = 0; d < D; ++d) acc[r][d] = fma(weight, v[d], acc[r][d]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (std::int64_t p = shared; p < task.context[row + r]; ++p) {
      const bf16* values = value_row(p);
      const V16 weight = set1(task.scores[(row + r) * task.scores_stride + p]);
      for (int d = 0; d < D; ++d) acc[r][d] = fma(weight, load(values + d * 16), acc[r][d]);
    }
    for (int d = 0; d < D; ++d) {
      const std::int64_t column = dim + d * 16;
      const int count = static_cast<int>(std::min<std::int64_t>(16, task.head_dim - column));
      const V16 value = acc[r][d] * set1(inverse_sums[row + r]);
      if (count == 16)
        store(task.out[row + r] + column, value);
      else
        store_partial(task.out[row + r] + column, value, count);
    }
  }
}

template <int R>
void attention_rows(const AttentionTask& task, int row, const float (*query)[256]) {
  std::int64_t longest = 0;
  for (int r = 0; r < R; ++r) longest = std::max(longest, task.context[row + r]);
  score_rows<R>(task, row, query, (longest + 15) / 16);
  float inverse_sums[AttentionTask::kMaxRows];
  for (int r = 0; r < R; ++r)
    inverse_sums[row + r] = softmax_row(task.scores + (row + r) * task.scores_stride, task.context[row + r]);
  constexpr int kVectors = std::min(4, kValueSums / R);
  std::int64_t dim = 0;
  for (; dim + kVectors * 16 <= task.padded_head_dim; dim += kVectors * 16)
    weighted_values<R, kVectors>(task, row, dim, inverse_sums);
  for (; dim < task.padded_head_dim; dim += 16) weighted_values<R, 1>(task, row, dim, inverse_sums);
}

}  // namespace

void attention(const AttentionTask& task) {
  float query[AttentionTask::kMaxRows][256];
  for (int r = 0; r < task.rows; ++r)
    for (std::int64_t d = 0; d < task.head_dim; ++d) query[r][d] = to_float(task.query[r][d]);
  int row = 0;
  for (; task.rows - row >= kWidestRows; row += kWidestRows) attention_rows<kWidestRows>(task, row, query);
  for (; task.rows - row >= 6; row += 6) attention_rows<6>(task, row, query);
  for (; task.rows - row >= 3; row += 3) attention_rows<3>(task, row, query);
  for (; row < task.rows; ++row) attention_rows<1>(task, row, query);
}

}  // namespace octavo::OCTAVO_ISA_NS
