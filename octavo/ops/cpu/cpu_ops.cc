#include "octavo/ops/cpu/cpu_ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

#include "octavo/ops/cpu/kernels.h"
#include "octavo/quant/code_layout.h"

namespace octavo {
namespace {

class CpuOps final : public Ops {
 public:
  CpuOps(ThreadPool& pool, IsaChoice isas)
      : pool_(pool),
        isas_(isas),
        few_(kernels_for(isas.few_tokens)),
        kernels_(kernels_for(isas.many_tokens)) {}

  std::string name() const override {
    std::string isas(name_of(isas_.many_tokens));
    if (isas_.few_tokens != isas_.many_tokens) isas += fmt::format(" + {}", name_of(isas_.few_tokens));
    return fmt::format("cpu {}, {} thread{}", isas, pool_.size(), pool_.size() == 1 ? "" : "s");
  }

  void embed(const LinearWeight& embedding, std::span<const std::int32_t> token_ids,
             float* residual) override {
    const std::int64_t cols = embedding.in;
    for_each_token(static_cast<std::int64_t>(token_ids.size()), [&](std::int64_t t) {
      const std::int64_t row = token_ids[static_cast<std::size_t>(t)];
      const bf16* pairs =
          static_cast<const bf16*>(embedding.data) + row / kTileRows * kTileRows * cols + row % kTileRows * 2;
      float* out = residual + t * cols;
      for (std::int64_t c = 0; c < cols; c += 2, pairs += 2 * kTileRows) {
        out[c] = to_float(pairs[0]);
        out[c + 1] = to_float(pairs[1]);
      }
    });
  }

  void add_rms_norm(float* residual, const bf16* delta, std::int64_t delta_stride, std::int64_t tokens,
                    const float* weight, float eps, const Activation& out,
                    std::span<const std::int32_t> rows) override {
    const bool all = rows.empty();
    for_each_token(all ? tokens : static_cast<std::int64_t>(rows.size()), [&](std::int64_t i) {
      const std::int64_t t = all ? i : rows[static_cast<std::size_t>(i)];
      RmsNormTask task;
      task.residual = residual + t * out.cols;
      task.delta = delta == nullptr ? nullptr : delta + t * delta_stride;
      task.write_residual = all;
      task.weight = weight;
      task.eps = eps;
      task.cols = out.cols;
      task.out = out.data + i * out.cols;
      kernels_.rms_norm(task);
      quantize(out, i);
    });
  }

  void pack_rows(std::span<const std::int32_t> rows, float* residual, std::int64_t hidden,
                 const Activation& x) override {
    const auto pack = [&](auto* data, std::int64_t cols) {
      for (std::size_t i = 0; i < rows.size(); ++i)
        std::memmove(data + static_cast<std::int64_t>(i) * cols, data + rows[i] * cols,
                     static_cast<std::size_t>(cols) * sizeof(*data));
    };
    pack(residual, hidden);
    pack(x.data, x.cols);
    if (x.scales != nullptr) pack(x.scales, blocks_of(x.cols));
  }

  void linear(const Activation& x, std::int64_t tokens, const LinearWeight& weight, bf16* out) override {
    LinearTask task;
    task.out_bf16 = out;
    run_linear(task, x, tokens, weight);
  }

  void logits(const Activation& x, std::int64_t tokens, const LinearWeight& weight, float* out) override {
    LinearTask task;
    task.out_f32 = out;
    run_linear(task, x, tokens, weight);
  }

  void rope_and_store(bf16* qkv, const Batch& batch, const AttentionShape& shape, const float* q_norm,
                      const float* k_norm, float eps, const RopeTable& rope, const KvLayer& kv) override {
    span_of_.clear();
    for (const BatchSpan& span : batch.spans) span_of_.insert(span_of_.end(), span.num_tokens, &span);
    // A token touches a cache line for every two key dimensions, so even a batch of decodes is worth sharing
    // out. The sixteen tokens of a cache block write the same lines, so a prompt is cut between blocks.
    const auto tokens = static_cast<std::int64_t>(span_of_.size());
    const std::int64_t share = tokens / (4 * pool_.size()) + KvGeometry::block_size - 1;
    const std::int64_t grain = tokens < 2 * KvGeometry::block_size * pool_.size()
                                   ? 2
                                   : share / KvGeometry::block_size * KvGeometry::block_size;
    pool_.parallel_for(tokens, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const BatchSpan& span = *span_of_[static_cast<std::size_t>(t)];
        const std::int64_t position = batch.positions[static_cast<std::size_t>(t)];
        bf16* row = qkv + t * shape.qkv_cols;
        rotate_heads(row, shape, q_norm, k_norm, eps, rope, position);
        store_kv(row, shape, span.blocks[position / KvGeometry::block_size],
                 position % KvGeometry::block_size, kv);
      }
    });
  }

  void attention(const bf16* qkv, const Batch& batch, const AttentionShape& shape, const KvLayer& kv,
                 const Activation& out) override {
    collect_attention_work(batch, shape);
    const auto count = static_cast<std::int64_t>(work_.size());
    const std::int64_t grain = std::max<std::int64_t>(1, count / (8 * pool_.size()));
    pool_.parallel_for(count, grain, [&](std::int64_t begin, std::int64_t end) {
      thread_local std::vector<float> scores;
      for (std::int64_t i = begin; i < end; ++i)
        attend(qkv, shape, kv, out, work_[static_cast<std::size_t>(i)], scores);
    });
    if (out.scales != nullptr)
      for_each_token(static_cast<std::int64_t>(batch.token_ids.size()),
                     [&](std::int64_t t) { quantize(out, t); });
  }

  void silu_mul(const bf16* gate_up, std::int64_t tokens, std::int64_t gate_up_cols, std::int64_t up_begin,
                const Activation& out) override {
    for_each_token(tokens, [&](std::int64_t t) {
      const bf16* row = gate_up + t * gate_up_cols;
      kernels_.silu_mul(row, row + up_begin, out.cols, out.data + t * out.cols);
      quantize(out, t);
    });
  }

  void copy_kv_block(std::span<const KvLayer> layers, const KvGeometry& geometry, std::int32_t from,
                     std::int32_t to) override {
    const std::int64_t elements = geometry.block_elements();
    for (const KvLayer& layer : layers) {
      for (void* side : {layer.keys, layer.values}) {
        auto* base = static_cast<bf16*>(side);
        std::memcpy(base + to * elements, base + from * elements,
                    static_cast<std::size_t>(elements) * sizeof(bf16));
      }
    }
  }

 private:
  // Up to kMaxRows queries that share a KV head: several heads of a group, and of neighbouring tokens in a
  // prefill.
  struct AttentionWork {
    const BatchSpan* span;
    std::int64_t first_token;  // within the span
    std::int64_t num_tokens;
    std::int64_t kv_head;
    std::int64_t first_head;  // within the group
    std::int64_t num_heads;
  };

  // A task a token is enough work to share out only when there are several.
  template <typename F>
  void for_each_token(std::int64_t tokens, const F& body) {
    const std::int64_t grain = std::max<std::int64_t>(4, tokens / (4 * pool_.size()));
    pool_.parallel_for(tokens, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) body(t);
    });
  }

  void quantize(const Activation& out, std::int64_t row) const {
    if (out.scales == nullptr) return;
    kernels_.quantize_row(out.data + row * out.cols, out.cols,
                          out.scales + row * ((out.cols + kBlock - 1) / kBlock), out.pow2);
  }

  void run_linear(LinearTask task, const Activation& x, std::int64_t tokens, const LinearWeight& weight) {
    assert(x.cols == weight.in);
    assert((x.scales != nullptr) == (weight.precision == Precision::kFP8));
    task.x = x.data;
    task.x_scales = x.scales;
    task.weight = &weight;
    constexpr std::int64_t kFewTokens = 4;
    const Kernels& kernels = tokens <= kFewTokens ? few_ : kernels_;

    // Equal shares of tiles, in whole register blocks as far as possible; several shares a thread where there
    // are so many tiles that balancing is cheap, and so few tokens that laying them out for each share is.
    // Long batches are cut by tokens as well, since tiles alone may not divide.
    constexpr std::int64_t kTokenChunk = 256;
    constexpr std::int64_t kManyTiles = 64;
    constexpr std::int64_t kManyTokens = 64;
    const std::int64_t tiles = weight.out / kTileRows;
    const std::int64_t share = (tiles + pool_.size() - 1) / pool_.size();
    const bool several = share >= kManyTiles && tokens < kManyTokens;
    const std::int64_t grain = several ? (share / 4 + 3) / 4 * 4 : (share + 1) / 2 * 2;
    const std::int64_t tile_chunks = (tiles + grain - 1) / grain;
    const std::int64_t token_chunks = (tokens + kTokenChunk - 1) / kTokenChunk;
    pool_.parallel_for(tile_chunks * token_chunks, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t begin = i / tile_chunks * kTokenChunk;
        LinearTask part = task;
        part.tokens = std::min(kTokenChunk, tokens - begin);
        part.x += begin * weight.in;
        if (part.x_scales != nullptr) part.x_scales += begin * weight.scale_cols();
        if (part.out_bf16 != nullptr) part.out_bf16 += begin * weight.out;
        if (part.out_f32 != nullptr) part.out_f32 += begin * weight.out;
        part.tile_begin = i % tile_chunks * grain;
        part.tile_end = std::min(tiles, part.tile_begin + grain);
        kernels.linear(part);
      }
    });
  }

  void rotate_heads(bf16* row, const AttentionShape& shape, const float* q_norm, const float* k_norm,
                    float eps, const RopeTable& rope, std::int64_t position) const {
    RopeTask task;
    task.head_dim = shape.head_dim;
    task.eps = eps;
    task.cos = rope.cos + position * (shape.head_dim / 2);
    task.sin = rope.sin + position * (shape.head_dim / 2);
    task.norm = q_norm;
    for (std::int64_t h = 0; h < shape.num_heads; ++h) {
      task.head = row + shape.q_begin + h * shape.head_dim;
      kernels_.rope(task);
    }
    task.norm = k_norm;
    for (std::int64_t h = 0; h < shape.num_kv_heads; ++h) {
      task.head = row + shape.k_begin + h * shape.head_dim;
      kernels_.rope(task);
    }
  }

  static std::int64_t padded(std::int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

  static void store_kv(const bf16* row, const AttentionShape& shape, std::int64_t block, std::int64_t slot,
                       const KvLayer& kv) {
    const std::int64_t key_elements = KvGeometry::block_size * padded(shape.head_dim);
    for (std::int64_t h = 0; h < shape.num_kv_heads; ++h) {
      const std::int64_t base = (block * shape.num_kv_heads + h) * key_elements;
      bf16* keys = static_cast<bf16*>(kv.keys) + base + slot * 2;
      const bf16* k = row + shape.k_begin + h * shape.head_dim;
      for (std::int64_t d = 0; d < shape.head_dim; d += 2, keys += 2 * KvGeometry::block_size)
        std::memcpy(keys, k + d, 2 * sizeof(bf16));
      bf16* values = static_cast<bf16*>(kv.values) + base + slot * padded(shape.head_dim);
      std::copy_n(row + shape.v_begin + h * shape.head_dim, shape.head_dim, values);
    }
  }

  void collect_attention_work(const Batch& batch, const AttentionShape& shape) {
    constexpr std::int64_t kRows = AttentionTask::kMaxRows;  // one or two of the kernel's register blocks
    const std::int64_t group = shape.num_heads / shape.num_kv_heads;
    const std::int64_t heads = std::min(group, kRows);
    const std::int64_t tokens = std::max<std::int64_t>(1, kRows / heads);
    work_.clear();
    for (const BatchSpan& span : batch.spans)
      for (std::int64_t t = 0; t < span.num_tokens; t += tokens)
        for (std::int64_t kv_head = 0; kv_head < shape.num_kv_heads; ++kv_head)
          for (std::int64_t h = 0; h < group; h += heads)
            work_.push_back(
                {&span, t, std::min(tokens, span.num_tokens - t), kv_head, h, std::min(heads, group - h)});
  }

  void attend(const bf16* qkv, const AttentionShape& shape, const KvLayer& kv, const Activation& out,
              const AttentionWork& work, std::vector<float>& scores) const {
    const std::int64_t group = shape.num_heads / shape.num_kv_heads;
    const std::int64_t head_elements = KvGeometry::block_size * padded(shape.head_dim);
    AttentionTask task;
    std::int64_t longest = 0;
    for (std::int64_t t = 0; t < work.num_tokens; ++t) {
      const std::int64_t token = work.span->first_token + work.first_token + t;
      for (std::int64_t h = 0; h < work.num_heads; ++h, ++task.rows) {
        const std::int64_t head = work.kv_head * group + work.first_head + h;
        task.query[task.rows] = qkv + token * shape.qkv_cols + shape.q_begin + head * shape.head_dim;
        task.out[task.rows] = out.data + token * out.cols + head * shape.head_dim;
        task.context[task.rows] = work.span->first_position + work.first_token + t + 1;
        longest = std::max(longest, task.context[task.rows]);
      }
    }
    task.blocks = work.span->blocks;
    task.keys = static_cast<const bf16*>(kv.keys) + work.kv_head * head_elements;
    task.values = static_cast<const bf16*>(kv.values) + work.kv_head * head_elements;
    task.block_stride = shape.num_kv_heads * head_elements;
    task.head_dim = shape.head_dim;
    task.padded_head_dim = padded(shape.head_dim);
    task.scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
    task.scores_stride = (longest + 15) / 16 * 16;
    scores.resize(static_cast<std::size_t>(task.scores_stride * task.rows));
    task.scores = scores.data();
    kernels_.attention(task);
  }

  ThreadPool& pool_;
  IsaChoice isas_;
  const Kernels& few_;
  const Kernels& kernels_;
  std::vector<AttentionWork> work_;
  std::vector<const BatchSpan*> span_of_;  // of each token of the batch
};

}  // namespace

std::unique_ptr<Ops> make_cpu_ops(ThreadPool& pool, Isa isa) {
  return std::make_unique<CpuOps>(pool, IsaChoice{isa, isa});
}

std::unique_ptr<Ops> make_cpu_ops(ThreadPool& pool) { return std::make_unique<CpuOps>(pool, fastest_isas()); }

}  // namespace octavo
