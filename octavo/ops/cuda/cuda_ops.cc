#include "octavo/ops/cuda/cuda_ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/ops/cuda/bf16_gemm.h"
#include "octavo/ops/cuda/gemm.h"
#include "octavo/ops/cuda/plain_linear.h"

namespace octavo::cuda {
namespace {

constexpr std::int64_t kPage16 = KvGeometry::block_size;
constexpr std::size_t kAlignment = 256;

std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::int64_t blocks_of_span(const BatchSpan& span) {
  return (span.first_position + span.num_tokens + kPage16 - 1) / kPage16;
}

// The batch's tokens in runs, at most one a token, longest contexts first; none where no sequence has more
// than one token.
std::int64_t write_runs(const Batch& batch, TokenRun* runs) {
  if (std::none_of(batch.spans.begin(), batch.spans.end(),
                   [](const BatchSpan& span) { return span.num_tokens > 1; }))
    return 0;
  TokenRun* end = runs;
  for (const BatchSpan& span : batch.spans)
    end = cut_into_runs(span.first_token, span.first_position, span.num_tokens, end);
  std::sort(runs, end, has_longer_context);
  return end - runs;
}

const std::uint8_t* codes(const Activation& x) { return reinterpret_cast<const std::uint8_t*>(x.data); }

}  // namespace

std::string why_no_gpu() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    cudaGetLastError();
    return fmt::format("this machine has no usable GPU ({})",
                       status == cudaSuccess ? "none found" : cudaGetErrorString(status));
  }
  cudaDeviceProp prop{};
  if (cudaGetDeviceProperties(&prop, 0) != cudaSuccess) return "the GPU does not answer";
  if (prop.major != 9)
    return fmt::format(
        "the GPU is a {} of compute capability {}.{}, but Octavo's kernels are for Hopper (9.0: H100, H200)",
        prop.name, prop.major, prop.minor);
  return {};
}

CudaOps::CudaOps(LinearKernels linear_kernels) {
  if (const std::string reason = why_no_gpu(); !reason.empty()) fail("{}; use --device cpu", reason);
  if (linear_kernels == LinearKernels::kCublasLt) {
    cublaslt_ = std::make_unique<CublasLt>();
  } else {
    chain_state_ = ChainState::claim();
    seats_ = std::make_unique<GpcSeats>();
  }
  cudaDeviceProp prop{};
  check(cudaGetDeviceProperties(&prop, 0), "device query");
  name_ = fmt::format("cuda {}", prop.name);
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  for (Upload& upload : uploads_)
    check(cudaEventCreateWithFlags(&upload.copied, cudaEventDisableTiming), "event");
}

CudaOps::~CudaOps() {
  cudaStreamSynchronize(stream_);
  for (const Upload& upload : uploads_) cudaEventDestroy(upload.copied);
  cudaStreamDestroy(stream_);
}

void CudaOps::reserve(std::int64_t tokens, std::int64_t rows, std::int64_t table_entries,
                      std::size_t extra_bytes) {
  max_tokens_ = std::max(max_tokens_, tokens);
  const std::size_t bytes = aligned(static_cast<std::size_t>(4 * tokens + rows) * sizeof(std::int32_t)) +
                            aligned(extra_bytes) +
                            aligned(static_cast<std::size_t>(table_entries) * sizeof(std::int32_t) +
                                    static_cast<std::size_t>(tokens) * sizeof(TokenRun));
  if (bytes <= step_.bytes()) return;
  check(cudaStreamSynchronize(stream_), "stream");
  step_ = DeviceBuffer(bytes);
  for (Upload& upload : uploads_) upload.host = PinnedBuffer(bytes);
}

// [token ids][positions][slots][starts of block tables][rows of logits] [extra] [block tables] [runs]:
// everything but the tables and the runs of prompts lies where the padded sizes say, so that a captured step
// finds it.
const std::byte* CudaOps::begin_step(const Batch& batch, std::int64_t padded,
                                     std::span<const std::byte> extra) {
  const auto count = static_cast<std::int64_t>(batch.token_ids.size());
  const std::int64_t tokens = std::max(count, padded);
  const std::int64_t rows = std::max(static_cast<std::int64_t>(batch.logit_rows.size()), padded);
  std::int64_t entries = 1;  // of padding: any block
  for (const BatchSpan& span : batch.spans) entries += blocks_of_span(span);
  reserve(tokens, rows, entries, extra.size());

  Upload& upload = uploads_[turn_++ % uploads_.size()];
  check(cudaEventSynchronize(upload.copied), "copy of a step");
  auto* const ids = upload.host.data<std::int32_t>();
  std::int32_t* const positions = ids + tokens;
  std::int32_t* const slots = positions + tokens;
  std::int32_t* const starts = slots + tokens;
  std::int32_t* const logit_rows = starts + tokens;
  const std::size_t extra_at = aligned(static_cast<std::size_t>(4 * tokens + rows) * sizeof(std::int32_t));
  const std::size_t tables_at = extra_at + aligned(extra.size());
  if (!extra.empty()) std::memcpy(upload.host.data() + extra_at, extra.data(), extra.size());
  auto* const tables = reinterpret_cast<std::int32_t*>(upload.host.data() + tables_at);

  std::copy(batch.token_ids.begin(), batch.token_ids.end(), ids);
  std::copy(batch.positions.begin(), batch.positions.end(), positions);
  std::copy(batch.logit_rows.begin(), batch.logit_rows.end(), logit_rows);
  std::int32_t longest = 0;
  std::int32_t at = 1;
  tables[0] = 0;
  for (const BatchSpan& span : batch.spans) {
    const auto blocks = static_cast<std::int32_t>(blocks_of_span(span));
    std::copy_n(span.blocks, blocks, tables + at);
    for (std::int64_t t = 0; t < span.num_tokens; ++t) {
      const std::int64_t token = span.first_token + t;
      const std::int64_t position = span.first_position + t;
      slots[token] =
          static_cast<std::int32_t>(span.blocks[position / kPage16] * kPage16 + position % kPage16);
      starts[token] = at;
      longest = std::max(longest, static_cast<std::int32_t>(position));
    }
    at += blocks;
  }
  for (std::int64_t token = count; token < tokens; ++token) {
    ids[token] = 0;
    positions[token] = 0;
    slots[token] = -1;
    starts[token] = 0;
  }
  for (auto row = static_cast<std::int64_t>(batch.logit_rows.size()); row < rows; ++row)
    logit_rows[row] = static_cast<std::int32_t>(std::min(row, tokens - 1));

  const std::size_t runs_at = tables_at + static_cast<std::size_t>(at) * sizeof(std::int32_t);
  const std::int64_t runs = write_runs(batch, reinterpret_cast<TokenRun*>(upload.host.data() + runs_at));
  copy_from_pinned(step_.data(), upload.host.data(),
                   runs_at + static_cast<std::size_t>(runs) * sizeof(TokenRun), stream_);
  check(cudaEventRecord(upload.copied, stream_), "copy of a step");
  const auto* const device = step_.data<std::int32_t>();
  token_ids_ = device;
  batch_.tokens = tokens;
  batch_.positions = device + tokens;
  batch_.slots = device + 2 * tokens;
  batch_.table_starts = device + 3 * tokens;
  logit_rows_ = device + 4 * tokens;
  batch_.block_tables = reinterpret_cast<const std::int32_t*>(step_.data() + tables_at);
  batch_.runs = runs == 0 ? nullptr : reinterpret_cast<const TokenRun*>(step_.data() + runs_at);
  batch_.num_runs = runs;
  batch_.longest_context = longest + 1;
  return step_.data() + extra_at;
}

void CudaOps::embed(const LinearWeight& embedding, std::span<const std::int32_t>, float* residual) {
  cuda::embed(static_cast<const bf16*>(embedding.data), embedding.in, token_ids_, batch_.tokens, residual,
              stream_, results_before_);
}

void CudaOps::add_rms_norm(float* residual, const bf16* delta, std::int64_t delta_stride, std::int64_t tokens,
                           const float* weight, float eps, const Activation& out,
                           std::span<const std::int32_t> rows) {
  const bool all = rows.empty();
  cuda::add_rms_norm(residual, delta, delta_stride, all ? tokens : static_cast<std::int64_t>(rows.size()),
                     weight, eps, out, all ? nullptr : logit_rows_, stream_);
}

void CudaOps::pack_rows(std::span<const std::int32_t> rows, float* residual, std::int64_t hidden,
                        const Activation& x) {
  cuda::pack_rows(logit_rows_, static_cast<std::int64_t>(rows.size()), residual, hidden, x, stream_);
}

void CudaOps::prepare(const LinearWeight& weight) {
  if (weight.precision == Precision::kFP8) {
    scale_rows_of(weight);
  } else if (cublaslt_ && weight.bias != nullptr) {
    check(cudaStreamSynchronize(stream_), "stream");
    cublaslt_->reserve_bias(weight.out);
  }
}

// Each 16 rows' row of scales, on the device: made when a weight is met first.
const CudaOps::ScaleRows& CudaOps::scale_rows_of(const LinearWeight& weight) {
  ScaleRows& of = scale_rows_[weight.data];
  if (of.rows.bytes() == 0) {
    if (cublaslt_) prepare_cublaslt(weight);
    const std::vector<std::int32_t>& rows = weight.scale_rows;
    of.rows = to_device(rows);
    of.by_blocks = true;
    constexpr std::size_t kTiles = kBlock / 16;
    for (std::size_t i = 0; i < rows.size(); ++i) of.by_blocks &= rows[i] == rows[i / kTiles * kTiles];
  }
  return of;
}

// Memory for a layer, before any step is captured.
void CudaOps::prepare_cublaslt(const LinearWeight& weight) {
  for (std::size_t tile = 0; tile < weight.scale_rows.size(); ++tile)
    if (weight.scale_rows[tile] != static_cast<std::int32_t>(tile * 16 / kBlock))
      fail(
          "cuBLASLt cannot scale a fused layer [{}, {}] whose parts are no multiple of {} rows; leave "
          "use_deep_gemm at true",
          weight.out, weight.in, kBlock);
  check(cudaStreamSynchronize(stream_), "stream");
  cublaslt_->reserve(std::max(max_tokens_, batch_.tokens), weight.out, weight.in);
}

namespace {

// What the fast kernels' bulk copies cannot take goes through the plain one; the shape alone decides.
void any_linear(const Fp8Gemm& gemm, cudaStream_t stream) {
  gemm.in % 16 == 0 ? fp8_gemm(gemm, stream) : plain_linear(gemm, stream);
}
void any_linear(const Bf16Gemm& gemm, cudaStream_t stream) {
  gemm.in % 8 == 0 ? bf16_gemm(gemm, stream) : plain_linear(gemm, stream);
}

}  // namespace

Fp8Gemm CudaOps::fp8_layer(const Activation& x, std::int64_t tokens, const LinearWeight& weight, bf16* out) {
  return {.tokens = tokens,
          .out = weight.out,
          .in = weight.in,
          .weight = static_cast<const std::uint8_t*>(weight.data),
          .weight_scales = weight.scales,
          .scale_rows = scale_rows_of(weight).rows.data<std::int32_t>(),
          .x = codes(x),
          .x_scales = x.scales,
          .bias = weight.bias,
          .y = out,
          .y_stride = weight.out,
          .seats = seats_.get()};
}

void CudaOps::bf16_linear(const Bf16Gemm& gemm) {
  if (cublaslt_ && gemm.in % 8 == 0) return cublaslt_->bf16_gemm(gemm, stream_);
  any_linear(gemm, stream_);
}

void CudaOps::linear(const Activation& x, std::int64_t tokens, const LinearWeight& weight, bf16* out) {
  assert(x.cols == weight.in);
  if (weight.precision == Precision::kBF16) {
    bf16_linear({.tokens = tokens,
                 .out = weight.out,
                 .in = weight.in,
                 .weight = static_cast<const bf16*>(weight.data),
                 .x = x.data,
                 .bias = weight.bias,
                 .y = out});
    return;
  }
  const Fp8Gemm gemm = fp8_layer(x, tokens, weight, out);
  cublaslt_ ? cublaslt_->fp8_gemm(gemm, stream_) : any_linear(gemm, stream_);
}

void CudaOps::logits(const Activation& x, std::int64_t tokens, const LinearWeight& weight, float* out) {
  bf16_linear({.tokens = tokens,
               .out = weight.out,
               .in = weight.in,
               .weight = static_cast<const bf16*>(weight.data),
               .x = x.data,
               .y_f32 = out});
}

void CudaOps::rope_and_store(bf16* qkv, const Batch&, const AttentionShape& shape, const float* q_norm,
                             const float* k_norm, float eps, const RopeTable& rope, const KvLayer& kv) {
  rotation_ = {q_norm, k_norm, eps, rope};
  cuda::rope_and_store(qkv, batch_, shape, rotation_, kv, stream_);
}

void CudaOps::attention(const bf16* qkv, const Batch&, const AttentionShape& shape, const KvLayer& kv,
                        const Activation& out) {
  const auto unquantized =
      static_cast<std::size_t>(std::max(max_tokens_, batch_.tokens) * out.cols) * sizeof(bf16);
  if (out.scales != nullptr && !cuda::attention_quantizes(shape) && unquantized_.bytes() < unquantized) {
    check(cudaStreamSynchronize(stream_), "stream");
    unquantized_ = DeviceBuffer(unquantized);
  }
  cuda::attention(qkv, batch_, shape, rotation_, kv, out, unquantized_.data<bf16>(), stream_);
}

void CudaOps::silu_mul(const bf16* gate_up, std::int64_t tokens, std::int64_t gate_up_cols,
                       std::int64_t up_begin, const Activation& out) {
  cuda::silu_mul(gate_up, tokens, gate_up_cols, up_begin, out, stream_);
}

void CudaOps::gated_linear(const Activation& x, std::int64_t tokens, const LinearWeight& gate_up, bf16* wide,
                           const Activation& out) {
  if (gate_up.precision == Precision::kFP8 && !cublaslt_) {
    const Fp8Gemm gemm = fp8_layer(x, tokens, gate_up, nullptr);
    if (scale_rows_of(gate_up).by_blocks && fp8_gemm_takes_gated(gemm, out))
      return fp8_gemm_gated(gemm, out, stream_);
  }
  Ops::gated_linear(x, tokens, gate_up, wide, out);
}

static_assert(kMaxChainTokens <= Activation::kLeastTokens);

bool CudaOps::takes_chain(const BetweenAttentions& b, std::int64_t tokens) const {
  if (chain_state_ == nullptr || tokens > std::min<std::int64_t>(kMaxChainTokens, multiprocessors()) ||
      b.o->out > kMaxChainNorm)
    return false;
  const auto fp8 = [](const LinearWeight* weight) {
    return weight->precision == Precision::kFP8 && weight->in % 16 == 0;
  };
  return fp8(b.o) && fp8(b.gate_up) && fp8(b.down) && b.gate_up->out % (2 * kBlock) == 0 &&
         b.gated.cols * 2 == b.gate_up->out && b.mlp_in.cols == b.o->out &&
         (b.qkv == nullptr || (fp8(b.qkv) && b.attention_in.cols == b.down->out));
}

void CudaOps::between_attentions(const BetweenAttentions& b, std::int64_t tokens) {
  if (!takes_chain(b, tokens)) return Ops::between_attentions(b, tokens);
  std::vector<ChainLink> links = {
      fp8_layer(b.attended, tokens, *b.o, nullptr),
      NormLink{.residual = b.residual, .weight = b.post_norm, .eps = b.eps, .out = b.mlp_in},
      GatedLink{fp8_layer(b.mlp_in, tokens, *b.gate_up, nullptr), b.gated},
      fp8_layer(b.gated, tokens, *b.down, b.delta)};
  if (b.qkv != nullptr) {
    links.emplace_back(
        NormLink{.residual = b.residual, .weight = b.input_norm, .eps = b.eps, .out = b.attention_in});
    links.emplace_back(fp8_layer(b.attention_in, tokens, *b.qkv, b.wide));
  }
  run_chain(links, tokens, chain_state_.get(), stream_);
}

void CudaOps::copy_kv_block(std::span<const KvLayer> layers, const KvGeometry& geometry, std::int32_t from,
                            std::int32_t to) {
  cuda::copy_kv_block(layers.data(), static_cast<std::int64_t>(layers.size()), geometry, from, to, stream_);
}

}  // namespace octavo::cuda
