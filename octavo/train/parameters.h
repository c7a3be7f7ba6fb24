// The policy's weights as the trainer holds them: one FP32 buffer of all parameters and one of their
// gradients.
//
// One buffer makes an optimizer step, a norm and a checkpoint one pass each, lets the parts of a fused matrix
// (q|k|v, gate|up) lie side by side, and gives a refit stable addresses to read from.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/model_spec.h"
#include "octavo/refit/transaction.h"

namespace octavo {

// One HF tensor.
struct Parameter {
  std::string name;
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  // elements from the buffer's start

  std::int64_t elements() const { return shape.size() < 2 ? shape[0] : shape[0] * shape[1]; }
};

// Parts of a matrix [out, in] that lie side by side, and its bias.
struct LinearParameters {
  std::vector<Parameter> parts;
  std::int64_t out = 0;
  std::int64_t in = 0;
  std::int64_t offset = 0;
  std::int64_t bias_offset = -1;  // [out]; -1: none
};

struct LayerParameters {
  std::int64_t input_norm = 0;  // offsets of vectors; -1: the architecture has none
  std::int64_t q_norm = -1;
  std::int64_t k_norm = -1;
  std::int64_t post_norm = 0;
  LinearParameters qkv;
  LinearParameters o;
  LinearParameters gate_up;
  LinearParameters down;
};

// Where everything lies.
class ParameterLayout {
 public:
  explicit ParameterLayout(const ModelSpec& spec);

  const std::vector<Parameter>& all() const { return all_; }
  std::int64_t size() const { return size_; }  // elements of the buffer, gaps included

  std::int64_t embedding() const { return embedding_; }
  std::int64_t lm_head() const { return lm_head_; }  // the embedding's offset where they are tied
  std::int64_t final_norm() const { return final_norm_; }
  const std::vector<LayerParameters>& layers() const { return layers_; }

 private:
  std::int64_t add(const std::string& name, std::vector<std::int64_t> shape);
  LinearParameters add_linear(const std::vector<std::pair<std::string, std::int64_t>>& parts, std::int64_t in,
                              bool bias);

  std::vector<Parameter> all_;
  std::int64_t size_ = 0;
  std::int64_t embedding_ = 0;
  std::int64_t lm_head_ = 0;
  std::int64_t final_norm_ = 0;
  std::vector<LayerParameters> layers_;
};

// A view of `count` elements of a flat buffer, or of a matrix in it.
at::Tensor flat_view(const at::Tensor& buffer, std::int64_t offset, std::int64_t count);
at::Tensor flat_view(const at::Tensor& buffer, std::int64_t offset, std::int64_t rows, std::int64_t cols);

// Every parameter of an FP32 buffer [layout.size()] where it lies, on the CPU or a GPU: what a refit takes.
std::vector<NamedTensor> named_tensors(const at::Tensor& buffer, const ParameterLayout& layout);

// Reads every parameter (f32, bf16 or f16) from an HF folder into a CPU buffer [layout.size()]. Error for a
// tensor that is missing, misshapen, unknown or in FP8, or holds a value that is not finite.
void load_parameters(const Checkpoint& checkpoint, const ParameterLayout& layout, at::Tensor& buffer);

}  // namespace octavo
