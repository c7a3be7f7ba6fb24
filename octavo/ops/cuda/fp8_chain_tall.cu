// The chain of 17 to 64 tokens: the tokens are on the 64-row side of wgmma, so a thread meets two tokens'
// scales and has few sums to add up. Two of four warpgroups have half of a linear tile's rows each; while one
// adds, the other's products keep the tensor cores busy. More would only read the tokens more often: of a
// tile of 32 rows that is what shared memory does most. Of a gated tile's 128 rows of gate and 128 of up each
// of the four has 32.
#include "octavo/ops/cuda/chain_kernel.cuh"
#include "octavo/ops/cuda/silu.cuh"

namespace octavo::cuda {
namespace {

constexpr int kGroupRows = kGatedRows / kGroups;  // of gate, and of up, of a gated tile

// A warp of the computing warpgroups: sixteen tokens, of which a thread has two, eight apart.
struct TallChain {
  using Memory = TallChainMemory;
  template <int kRows>
  using Sums = float[kRows / 2];  // a thread's share

  const ChainTask& task;
  const Memory& memory;
  int warp, lane;
  std::uint32_t weights = 0, tokens = 0, scales = 0;  // stages of the rings so far
  std::uint32_t links = 0;                            // that have been computed

  // Of the weights' scales a lane holds that of one of 32 steps, and of the next 32: of the first rows and of
  // the rest.
  const float* row_scales[2];
  float held[2], next[2];
  // Where this thread reads its tokens' scales of the 32 steps: a shared address, because nvcc 13.0 does not
  // come to an end where a pointer made of one lives through a loop.
  std::uint32_t token_scales;

  __device__ int group() const { return warp / 4; }
  __device__ int token() const { return warp % 4 * 16 + lane / 4; }
  __device__ std::uint32_t token_step() const {
    return static_cast<std::uint32_t>(task.token_rows) * kStepBytes;
  }

  // Of the rows from `first` on and of those from `second` on; beyond the matrix any will do.
  __device__ void begin_tile(const ChainTask::Link& link, int first, int second) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = min(i == 0 ? first : second, link.out - 1);
      row_scales[i] = link.weight_scales + static_cast<std::int64_t>(link.scale_rows[row / 16]) * link.steps;
      next[i] = lane < link.steps ? row_scales[i][lane] : -0.0F;
    }
  }
  // The scales of the 32 steps from `first` on; those of the weights were asked for so early that nothing
  // waits for them. Beyond K they are -0: times a block of zeros, that changes no sum.
  __device__ void begin_scales(int first, int steps) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      held[i] = next[i];
      next[i] = first + kScaleSteps + lane < steps ? row_scales[i][first + kScaleSteps + lane] : -0.0F;
    }
    memory.scales.wait_full(scales);
    token_scales = memory.scales.stage(scales) + static_cast<std::uint32_t>(token() * kScaleSteps) * 4;
  }
  __device__ std::uint32_t swizzle() const { return static_cast<std::uint32_t>(token() % 8 * 16); }
  // As one of `readers` warps.
  __device__ void end_scales(std::uint32_t readers) {
    __syncwarp();
    release(memory.scales, scales++, readers);
  }
  // This thread's two tokens' scales of the step-th of the 32, and those of the first rows and of the rest.
  struct Factors {
    float low, high, first, rest;
  };
  __device__ Factors read_factors(int step) const {
    const float* const from =
        from_shared<float>(token_scales + (static_cast<std::uint32_t>(step / 4 * 16) ^ swizzle()) +
                           static_cast<std::uint32_t>(step % 4 * 4));
    return {from[0], from[8 * kScaleSteps], __shfl_sync(0xffffffffU, held[0], step),
            __shfl_sync(0xffffffffU, held[1], step)};
  }
  // Their products.
  struct Scales {
    float low[2], high[2];
  };
  __device__ static Scales multiply(const Factors& of) {
    return {{__fmul_rn(of.low, of.first), __fmul_rn(of.low, of.rest)},
            {__fmul_rn(of.high, of.first), __fmul_rn(of.high, of.rest)}};
  }
  // sums += a step's block sums · scales of their token and of their rows, which are the first `split` times
  // eight, and the rest.
  template <int kRows>
  __device__ void promote(Sums<kRows>& sums, const Sums<kRows>& block, const Scales& scales,
                          int split) const {
#pragma unroll
    for (int i = 0; i < kRows / 8; ++i) {
      const float of_low = i < split ? scales.low[0] : scales.low[1];
      const float of_high = i < split ? scales.high[0] : scales.high[1];
      sums[i * 4] = __fmaf_rn(block[i * 4], of_low, sums[i * 4]);
      sums[i * 4 + 1] = __fmaf_rn(block[i * 4 + 1], of_low, sums[i * 4 + 1]);
      sums[i * 4 + 2] = __fmaf_rn(block[i * 4 + 2], of_high, sums[i * 4 + 2]);
      sums[i * 4 + 3] = __fmaf_rn(block[i * 4 + 3], of_high, sums[i * 4 + 3]);
    }
  }
  // As one of `readers` warps of a ring's n-th stage.
  template <typename Ring>
  __device__ void release(const Ring& ring, std::uint32_t n, std::uint32_t readers) const {
    arrive_if(lane == 0, ring.empty_of(n), kReaders / readers);
  }

  // A linear tile's rows of this warpgroup, one of kShare, kSpan steps a stage. One step's products are under
  // way while those of the one before are added, and so are the factors of its scales.
  template <int kRows, int kShare, int kSpan>
  __device__ void sum_linear(Sums<kRows>& sums, int steps, int split) {
    constexpr int kAtOnce = kTallStepsAtOnce;
    constexpr std::uint32_t kReading = kShare * 4;
    constexpr std::uint32_t kApart = kShare * kRows * kStepBytes;
    const std::uint32_t own = static_cast<std::uint32_t>(group()) * (kRows * kStepBytes);
    float blocks[2][1][kRows / 2];
    const auto begin = [&](int i) {
      const std::uint32_t w = weights + i / kSpan;
      const std::uint32_t x = tokens + i / kTallTokenSpan;
      if (i % kSpan == 0) memory.weights.wait_full(w);
      if (i % kTallTokenSpan == 0) memory.tokens.wait_full(x);
      begin_products<1, kRows>(blocks[i % 2], memory.tokens.stage(x) + i % kTallTokenSpan * token_step(), 0,
                               memory.weights.stage(w) + own + i % kSpan * kApart, 0);
    };
    for (int step = 0; step < steps; step += kAtOnce) {
      const int inside = step % kScaleSteps;
      if (inside == 0) begin_scales(step, steps);
      Factors factors = read_factors(inside);
      begin(0);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const bool more = i + 1 < kAtOnce;
        if (more) begin(i + 1);
        const Scales of_step = multiply(factors);
        if (more) factors = read_factors(inside + i + 1);
        more ? end_products<1>(blocks[i % 2]) : end_products<0>(blocks[i % 2]);
        if ((i + 1) % kTallTokenSpan == 0) release(memory.tokens, tokens + i / kTallTokenSpan, kReading);
        if ((i + 1) % kSpan == 0) release(memory.weights, weights + i / kSpan, kReading);
        promote<kRows>(sums, blocks[i % 2][0], of_step, split);
      }
      weights += kAtOnce / kSpan;
      tokens += kAtOnce / kTallTokenSpan;
      if (inside + kAtOnce == kScaleSteps || step + kAtOnce >= steps) end_scales(kReading);
    }
  }
  // To y: for a linear tile's rows from `row` on.
  template <int kRows>
  __device__ void store(const ChainTask::Link& link, const Sums<kRows>& sums, int row) const {
#pragma unroll
    for (int i = 0; i < kRows / 8; ++i) {
      const int at = row + i * 8 + lane % 4 * 2;
      if (row + i * 8 >= link.out) return;
      const float2 bias =
          link.bias == nullptr ? float2{0, 0} : *reinterpret_cast<const float2*>(link.bias + at);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int t = token() + half * 8;
        if (t >= task.tokens) continue;
        const float* const pair = sums + i * 4 + half * 2;
        put(reinterpret_cast<std::uint32_t*>(link.y + t * link.y_stride + at),
            pack_bf16(__fadd_rn(pair[0], bias.x), __fadd_rn(pair[1], bias.y)));
      }
    }
  }
  template <int kRows, int kShare, int kSpan>
  __device__ void linear_tile(const ChainTask::Link& link, int tile) {
    if (group() >= kShare) {
      const auto rounds = static_cast<std::uint32_t>((link.steps + kTallStepsAtOnce - 1) / kTallStepsAtOnce);
      weights += rounds * (kTallStepsAtOnce / kSpan);
      tokens += rounds * (kTallStepsAtOnce / kTallTokenSpan);
      scales += static_cast<std::uint32_t>((link.steps + kScaleSteps - 1) / kScaleSteps);
      return;
    }
    const int row = (tile * kShare + group()) * kRows;
    // Every sixteen rows may have scales of their own.
    const int split = (16 - row % 16) / 8;
    begin_tile(link, row, row + split * 8);
    Sums<kRows> sums = {};
    sum_linear<kRows, kShare, kSpan>(sums, link.steps, split);
    if (warp == 0 && lane == 0) memory.progress.say_computed(link, tile, links);
    store<kRows>(link, sums, row);
  }
  __device__ void linear(int index, const ChainTask::Link& link) {
    for (int tile = static_cast<int>(blockIdx.x); tile < link.tiles; tile += static_cast<int>(gridDim.x)) {
      if (link.rows == 32)
        linear_tile<32, 1, kChainSpan>(link, tile);
      else if (link.rows == 48)
        linear_tile<24, 2, kChainSpan / 2>(link, tile);
      else
        linear_tile<32, 2, kChainSpan / 2>(link, tile);
      // The others wait, too: a ring's parity tells them nothing of stages that are not read yet. One of them
      // says it, which these need not wait for.
      sync_computing();
      if (warp == kReaders - 4 && lane == 0) say_done(task, index);
    }
    if (static_cast<int>(blockIdx.x) < link.tiles) ++links;
  }

  // The first of this warpgroup's columns of a gated tile; it has eight of every sixteen of half of them.
  __device__ int gated_column() const { return group() / 2 * 64 + group() % 2 * 8; }
  // A gated tile. A stage has half of gate's rows of a step, then as many of up, in groups of eight, of which
  // every second is this warpgroup's: those of gate and of up as one matrix.
  __device__ void sum_gated(Sums<2 * kGroupRows>& sums, int steps) {
    constexpr std::uint32_t kEight = 8 * kStepBytes;
    const auto stage = static_cast<std::uint32_t>(group() / 2);
    const std::uint32_t own = static_cast<std::uint32_t>(group() % 2) * kEight;
    for (int first = 0; first < steps; first += kScaleSteps) {
      const int count = min(kScaleSteps, (steps - first + 1) / 2 * 2);
      for (int step = 0; step < count; step += 2, ++tokens) {
#pragma unroll
        for (int i = 0; i < 2; ++i, weights += 2) {
          float block[1][kGroupRows];
          if (i == 0) memory.tokens.wait_full(tokens);
          memory.weights.wait_full_among_others(weights + stage);
          begin_products<1, 2 * kGroupRows, 2 * kEight>(block, memory.tokens.stage(tokens) + i * token_step(),
                                                        0, memory.weights.stage(weights + stage) + own, 0);
          if (step == 0 && i == 0) begin_scales(first, steps);
          const Scales read = multiply(read_factors(step + i));
          end_products(block);
          if (i == 1) release(memory.tokens, tokens, kReaders);
          release(memory.weights, weights + stage, kReaders / 2);
          promote<2 * kGroupRows>(sums, block[0], read, kGroupRows / 8);
        }
      }
      end_scales(kReaders);
    }
  }
  // Of two tokens' codes, of which a lane has two of each of four chunks of eight columns, the eight of the
  // chunk that is lane % 4.
  __device__ uint2 gather_chunk(uint2 codes) const {
    const bool upper = lane % 4 >= 2;
    const bool odd = lane % 2 != 0;
    // Two chunks of this lane and of the one two further on or back, the lower lane's first.
    const std::uint32_t kept = upper ? codes.y : codes.x;
    const std::uint32_t got = __shfl_xor_sync(0xffffffffU, upper ? codes.x : codes.y, 2);
    const std::uint32_t low = upper ? got : kept;
    const std::uint32_t high = upper ? kept : got;
    // One chunk of both lanes' and of their neighbours.
    const std::uint32_t given = __byte_perm(low, high, odd ? 0x5410 : 0x7632);
    const std::uint32_t from = __shfl_xor_sync(0xffffffffU, given, 1);
    const std::uint32_t mine = __byte_perm(low, high, odd ? 0x7632 : 0x5410);
    return odd ? uint2{__byte_perm(from, mine, 0x5410), __byte_perm(from, mine, 0x7632)}
               : uint2{__byte_perm(mine, from, 0x5410), __byte_perm(mine, from, 0x7632)};
  }
  // silu(gate) · up of the tile, quantized: 128 columns of the result, which are one group of each token and
  // of which this warpgroup has 32.
  __device__ void store_gated(const ChainTask::Link& link, int tile, const Sums<2 * kGroupRows>& sums) const {
    const int column = tile * kGatedRows + gated_column();
    float results[2][8];  // of a token, two of each chunk
#pragma unroll
    for (int token_half = 0; token_half < 2; ++token_half) {
#pragma unroll
      for (int i = 0; i < 8; i += 2) {
        float2 part[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = column + half * (link.out / 2) + i * 8 + lane % 4 * 2;
          const float2 bias =
              link.bias == nullptr ? float2{0, 0} : *reinterpret_cast<const float2*>(link.bias + row);
          const float* const pair = sums + half * kGroupRows / 2 + i * 2 + token_half * 2;
          const std::uint32_t rounded = pack_bf16(__fadd_rn(pair[0], bias.x), __fadd_rn(pair[1], bias.y));
          part[half] = {low_bf16(rounded), high_bf16(rounded)};
        }
        const std::uint32_t rounded = pack_bf16(silu(part[0].x) * part[1].x, silu(part[0].y) * part[1].y);
        results[token_half][i] = low_bf16(rounded);
        results[token_half][i + 1] = high_bf16(rounded);
      }
      std::uint32_t largest = magnitude_bits(results[token_half]);
      largest = max(largest, __shfl_xor_sync(0xffffffffU, largest, 1));
      largest = max(largest, __shfl_xor_sync(0xffffffffU, largest, 2));
      if (lane % 4 == 0) memory.largest[(token() + token_half * 8) * kGroups + group()] = largest;
    }
    sync_computing();
    const std::int64_t cols = link.out / 2;
#pragma unroll
    for (int token_half = 0; token_half < 2; ++token_half) {
      const int t = token() + token_half * 8;
      const uint4 of_groups = *reinterpret_cast<const uint4*>(memory.largest + t * kGroups);
      const std::uint32_t largest = max(max(of_groups.x, of_groups.y), max(of_groups.z, of_groups.w));
      const Scale scale = divide_scale(__uint_as_float(largest), link.pow2);
      const uint2 codes = gather_chunk(e4m3x8(results[token_half], scale.multiplier));
      if (t >= task.tokens) continue;
      *reinterpret_cast<uint2*>(link.gated + t * cols + column + lane % 4 * 16) = codes;
      if (group() == 0 && lane % 4 == 0) link.gated_scales[t * blocks_of(cols) + tile] = scale.scale;
    }
  }
  __device__ void gated(int index, const ChainTask::Link& link) {
    for (int tile = static_cast<int>(blockIdx.x); tile < link.tiles; tile += static_cast<int>(gridDim.x)) {
      begin_tile(link, tile * kGatedRows, tile * kGatedRows + link.out / 2);
      Sums<2 * kGroupRows> sums = {};
      sum_gated(sums, link.steps);
      if (warp == 0 && lane == 0) memory.progress.say_computed(link, tile, links);
      store_gated(link, tile, sums);
      sync_computing();
      if (warp == 0 && lane == 0) say_done(task, index);
    }
    if (static_cast<int>(blockIdx.x) < link.tiles) ++links;
  }
};

}  // namespace

void launch_tall_chain(const ChainTask& task, int blocks, bool early, cudaStream_t stream) {
  launch_chain<TallChain>(task, blocks, early, stream);
}

}  // namespace octavo::cuda
