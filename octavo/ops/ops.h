// The few operations a dense decoder needs. model/ is written once against this interface; a backend
// (ops/cpu, ops/cuda) is one class that implements it.
//
// Shapes are row-major; T is the number of tokens of a step. Every operation computes a token's row from that
// row alone, in an order that depends on the weights' shape only: what else is in the batch never changes a
// bit.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/dtype.h"
#include "octavo/quant/block_scaling.h"

namespace octavo {

enum class Precision : std::uint8_t { kBF16, kFP8 };

// A weight matrix [out, in] as it lies in the backend's memory: one buffer made of stacked parts (q|k|v,
// gate|up). A part starts at a row that is a multiple of the backend's tile, and its 128×128 blocks start at
// its own first row, so that any part can be replaced alone and has the bits that it would have on its own.
struct LinearWeight {
  struct Part {
    std::int64_t rows = 0;       // rows of the HF tensor
    std::int64_t row_begin = 0;  // first row in the fused matrix
    std::int64_t scale_row = 0;  // its first row in `scales` (FP8)
  };

  Precision precision = Precision::kBF16;
  std::int64_t in = 0;
  std::int64_t out = 0;  // rows of the fused matrix, padding between parts included
  std::vector<Part> parts;

  void* data = nullptr;                  // E4M3 codes or bf16, in the backend's layout
  float* scales = nullptr;               // [scale_rows, ceil(in/128)] (FP8)
  std::vector<std::int32_t> scale_rows;  // for each tile of 16 rows: its row in `scales` (FP8)
  const float* bias = nullptr;           // [out] or null
  bool pow2_activations = false;         // the scales of this layer's activations are powers of two (FP8)

  std::int64_t scale_cols() const { return (in + kBlock - 1) / kBlock; }
};

// The input of a linear layer. For an FP8 layer the values are E4M3 values, held as bf16 on the CPU (exact),
// with one scale for each 1×128 group; the operation that makes the activation quantizes it on the way out.
struct Activation {
  // There is room for this many tokens, however few there are: kernels for few may read it, whatever is in
  // it.
  static constexpr std::int64_t kLeastTokens = 16;

  bf16* data = nullptr;     // [T, cols]
  float* scales = nullptr;  // [T, ceil(cols/128)], on the GPU [T, scale_pitch(cols)]; null: plain bf16
  std::int64_t cols = 0;
  bool pow2 = false;
};

// One layer's paged KV cache. A block holds `block_size` consecutive positions of one sequence.
struct KvLayer {
  void* keys = nullptr;  // backend's layout
  void* values = nullptr;
};

struct KvGeometry {
  std::int64_t num_blocks = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  static constexpr std::int64_t block_size = 16;
  // Of a sequence of so many tokens.
  static constexpr std::int64_t blocks_for(std::int64_t tokens) {
    return (tokens + block_size - 1) / block_size;
  }

  // A head's values are padded to a whole vector of 16, and keys take the same room.
  std::int64_t block_elements() const { return num_kv_heads * ((head_dim + 15) / 16 * 16) * block_size; }
  // Bytes of keys (or of values) of one layer.
  std::size_t layer_bytes() const {
    return static_cast<std::size_t>(num_blocks * block_elements()) * sizeof(bf16);
  }
};

// A run of consecutive tokens of one sequence in a step's batch. Prefill chunks and decodes differ in length
// only.
struct BatchSpan {
  std::int64_t first_token = 0;  // index of its first token in the batch
  std::int64_t num_tokens = 0;
  std::int64_t first_position =
      0;  // position of that token in the sequence; the context is what lies before it
  const std::int32_t* blocks = nullptr;  // block table: position p lives in blocks[p / block_size]
};

struct Batch {
  std::span<const std::int32_t> token_ids;   // [T]
  std::span<const std::int32_t> positions;   // [T]
  std::span<const BatchSpan> spans;          // in the order of their tokens, covering all of them
  std::span<const std::int32_t> logit_rows;  // tokens whose logits are wanted, strictly rising
};

struct RopeTable {
  const float* cos = nullptr;  // [max_position, head_dim / 2], attention factor included
  const float* sin = nullptr;
};

struct AttentionShape {
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t q_begin = 0;  // columns of the fused q|k|v output
  std::int64_t k_begin = 0;
  std::int64_t v_begin = 0;
  std::int64_t qkv_cols = 0;
};

// What lies between the attention of a layer and that of the next: o, the MLP, and the next layer's q|k|v,
// with the norms before them. The linear layers' inputs are where their Activations say. `delta` and `wide`
// are scratch: what is left in them is down's result where qkv is null, and that of q|k|v where it is not.
struct BetweenAttentions {
  float* residual = nullptr;
  float eps = 0;
  bf16* delta = nullptr;  // [T, o.out]

  const LinearWeight* o = nullptr;
  Activation attended;
  const float* post_norm = nullptr;
  const LinearWeight* gate_up = nullptr;
  Activation mlp_in;
  bf16* wide = nullptr;  // [T, gate_up.out or qkv.out]
  const LinearWeight* down = nullptr;
  Activation gated;

  // Null after the last layer, which leaves in delta what is still to be added to the residual.
  const LinearWeight* qkv = nullptr;
  const float* input_norm = nullptr;
  Activation attention_in;
};

class Ops {
 public:
  virtual ~Ops() = default;

  virtual std::string name() const = 0;  // "cpu avx512-bf16, 2 threads"

  // Called before the operations of a step: brings what they need of its batch to where they compute.
  virtual void begin_step(const Batch& /*batch*/) {}

  // residual[t] = embedding row token_ids[t]; the embedding is a bf16 LinearWeight [vocab, hidden] in backend
  // layout.
  virtual void embed(const LinearWeight& embedding, std::span<const std::int32_t> token_ids,
                     float* residual) = 0;

  // residual[t] += delta[t] (delta [T, delta_stride] may be null); out[t] = RMSNorm(residual[t]) * weight, in
  // FP32, rounded to bf16 and then, for an FP8 consumer, quantized. With `rows`, only those tokens are
  // computed and packed, and residual is left.
  virtual void add_rms_norm(float* residual, const bf16* delta, std::int64_t delta_stride,
                            std::int64_t tokens, const float* weight, float eps, const Activation& out,
                            std::span<const std::int32_t> rows = {}) = 0;

  // Drops the tokens of which nothing more is wanted: residual[i] = residual[rows[i]] (of `hidden` columns),
  // and the same of x and its scales, in place. `rows`: the batch's logit_rows.
  virtual void pack_rows(std::span<const std::int32_t> rows, float* residual, std::int64_t hidden,
                         const Activation& x) = 0;

  // out[t, n] = Σ_k x[t, k] w[n, k] (+ bias[n]); FP8: out = Σ_b sx[t,b] sw[n/128,b] Σ_{k∈b} x w. Rounded to
  // bf16.
  virtual void linear(const Activation& x, std::int64_t tokens, const LinearWeight& weight, bf16* out) = 0;
  // The same with an FP32 result, for lm_head: logits[t, 0 … out).
  virtual void logits(const Activation& x, std::int64_t tokens, const LinearWeight& weight, float* out) = 0;

  // In qkv [T, qkv_cols]: optional RMSNorm of every q and k head, rotary embedding (HF's half-split order),
  // then k and v are written to the cache. Norm weights are [head_dim] or null. attention() of the same
  // tokens follows, and the GPU's may do all this itself: until then neither qkv nor the cache may be read,
  // and after it the GPU may have left qkv as it was.
  virtual void rope_and_store(bf16* qkv, const Batch& batch, const AttentionShape& shape, const float* q_norm,
                              const float* k_norm, float eps, const RopeTable& rope, const KvLayer& kv) = 0;

  // Causal grouped-query attention over the paged cache; out [T, num_heads * head_dim].
  virtual void attention(const bf16* qkv, const Batch& batch, const AttentionShape& shape, const KvLayer& kv,
                         const Activation& out) = 0;

  // out = silu(gate) * up, where gate_up [T, gate_up_cols] holds `gate` from column 0 and `up` from column
  // up_begin.
  virtual void silu_mul(const bf16* gate_up, std::int64_t tokens, std::int64_t gate_up_cols,
                        std::int64_t up_begin, const Activation& out) = 0;

  // silu_mul(linear(x, gate_up)), with `wide` [T, gate_up.out] for what lies between. `out` must not overlap
  // x.
  virtual void gated_linear(const Activation& x, std::int64_t tokens, const LinearWeight& gate_up, bf16* wide,
                            const Activation& out) {
    linear(x, tokens, gate_up, wide);
    silu_mul(wide, tokens, gate_up.out, gate_up.parts[1].row_begin, out);
  }

  virtual void between_attentions(const BetweenAttentions& b, std::int64_t tokens) {
    linear(b.attended, tokens, *b.o, b.delta);
    add_rms_norm(b.residual, b.delta, b.o->out, tokens, b.post_norm, b.eps, b.mlp_in);
    gated_linear(b.mlp_in, tokens, *b.gate_up, b.wide, b.gated);
    linear(b.gated, tokens, *b.down, b.delta);
    if (b.qkv == nullptr) return;
    add_rms_norm(b.residual, b.delta, b.down->out, tokens, b.input_norm, b.eps, b.attention_in);
    linear(b.attention_in, tokens, *b.qkv, b.wide);
  }

  // Copies the keys and values of one block to another, in every layer given.
  virtual void copy_kv_block(std::span<const KvLayer> layers, const KvGeometry& geometry, std::int32_t from,
                             std::int32_t to) = 0;
};

}  // namespace octavo
