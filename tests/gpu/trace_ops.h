// Ops that keep what every operation of another Ops produces, as floats on the host: two backends run the
// same model, and the tests say at which operation they part.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "octavo/ops/ops.h"
#include "octavo/ops/storage.h"
#include "octavo/quant/block_scaling.h"
#include "octavo/quant/e4m3.h"

namespace octavo {

class TraceOps final : public Ops {
 public:
  struct Entry {
    std::string name;
    std::vector<float> values;
  };

  // `codes`: the backend's FP8 activations are bytes (on the GPU) and not bf16 images (on the CPU).
  // `wait` ends what the backend has launched.
  TraceOps(Ops& inner, Storage& storage, bool codes, std::function<void()> wait)
      : inner_(inner), storage_(storage), codes_(codes), wait_(std::move(wait)) {}

  std::vector<Entry> entries;

  std::string name() const override { return inner_.name(); }
  void begin_step(const Batch& batch) override {
    tokens_ = static_cast<std::int64_t>(batch.token_ids.size());
    inner_.begin_step(batch);
  }
  void embed(const LinearWeight& embedding, std::span<const std::int32_t> ids, float* residual) override {
    inner_.embed(embedding, ids, residual);
    keep_floats("embed", residual, static_cast<std::int64_t>(ids.size()) * embedding.in);
  }
  void add_rms_norm(float* residual, const bf16* delta, std::int64_t stride, std::int64_t tokens,
                    const float* weight, float eps, const Activation& out,
                    std::span<const std::int32_t> rows) override {
    inner_.add_rms_norm(residual, delta, stride, tokens, weight, eps, out, rows);
    if (rows.empty()) keep_floats("residual", residual, tokens * out.cols);
    keep_activation("norm", out, rows.empty() ? tokens : static_cast<std::int64_t>(rows.size()));
  }
  void pack_rows(std::span<const std::int32_t> rows, float* residual, std::int64_t hidden,
                 const Activation& x) override {
    inner_.pack_rows(rows, residual, hidden, x);
    const auto count = static_cast<std::int64_t>(rows.size());
    keep_floats("packed residual", residual, count * hidden);
    keep_activation("packed", x, count);
  }
  void linear(const Activation& x, std::int64_t tokens, const LinearWeight& weight, bf16* out) override {
    inner_.linear(x, tokens, weight, out);
    keep_bf16(weight.precision == Precision::kFP8 ? "linear fp8" : "linear bf16", out, tokens * weight.out);
  }
  void logits(const Activation& x, std::int64_t tokens, const LinearWeight& weight, float* out) override {
    inner_.logits(x, tokens, weight, out);
    keep_floats("logits", out, tokens * weight.out);
  }
  void rope_and_store(bf16* qkv, const Batch& batch, const AttentionShape& shape, const float* q_norm,
                      const float* k_norm, float eps, const RopeTable& rope, const KvLayer& kv) override {
    inner_.rope_and_store(qkv, batch, shape, q_norm, k_norm, eps, rope, kv);  // seen in attention's result
  }
  void attention(const bf16* qkv, const Batch& batch, const AttentionShape& shape, const KvLayer& kv,
                 const Activation& out) override {
    inner_.attention(qkv, batch, shape, kv, out);
    keep_activation("attention", out, tokens_);
  }
  void silu_mul(const bf16* gate_up, std::int64_t tokens, std::int64_t cols, std::int64_t up_begin,
                const Activation& out) override {
    inner_.silu_mul(gate_up, tokens, cols, up_begin, out);
    keep_activation("silu", out, tokens);
  }
  void copy_kv_block(std::span<const KvLayer> layers, const KvGeometry& geometry, std::int32_t from,
                     std::int32_t to) override {
    inner_.copy_kv_block(layers, geometry, from, to);
  }

 private:
  template <typename T>
  std::vector<T> fetch(const void* from, std::int64_t count) {
    wait_();
    std::vector<T> out(static_cast<std::size_t>(count));
    storage_.download(out.data(), from, out.size() * sizeof(T));
    return out;
  }
  void keep_floats(const char* what, const float* values, std::int64_t count) {
    entries.push_back({what, fetch<float>(values, count)});
  }
  void keep_bf16(const char* what, const bf16* values, std::int64_t count) {
    Entry entry{what, {}};
    for (const bf16 v : fetch<bf16>(values, count)) entry.values.push_back(to_float(v));
    entries.push_back(std::move(entry));
  }
  void keep_activation(const char* what, const Activation& x, std::int64_t rows) {
    if (x.scales == nullptr) return keep_bf16(what, x.data, rows * x.cols);
    const std::int64_t pitch = codes_ ? scale_pitch(x.cols) : blocks_of(x.cols);
    const auto scales = fetch<float>(x.scales, rows * pitch);
    Entry entry{std::string(what) + " fp8", {}};
    const auto scale = [&](std::int64_t i) {
      return scales[static_cast<std::size_t>(i / x.cols * pitch + i % x.cols / kBlock)];
    };
    if (codes_) {
      const auto codes = fetch<std::uint8_t>(x.data, rows * x.cols);
      for (std::int64_t i = 0; i < rows * x.cols; ++i)
        entry.values.push_back(e4m3_to_float(codes[static_cast<std::size_t>(i)]) * scale(i));
    } else {
      const auto images = fetch<bf16>(x.data, rows * x.cols);
      for (std::int64_t i = 0; i < rows * x.cols; ++i)
        entry.values.push_back(to_float(images[static_cast<std::size_t>(i)]) * scale(i));
    }
    entries.push_back(std::move(entry));
  }

  Ops& inner_;
  Storage& storage_;
  bool codes_;
  std::function<void()> wait_;
  std::int64_t tokens_ = 0;
};

// ‖a − b‖ / ‖b‖.
inline double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += d * d;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

}  // namespace octavo
