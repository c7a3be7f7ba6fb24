// What a backward pass needs of its forward pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace octavo {

// Values as in functions.h, whoever computed them.
struct LayerTape {
  at::Tensor residual_in, inverse_rms_in, attention_in;  // attention_in, …: the inputs of linear layers
  // q, k, v after their rotation; qkv, before norms and rotation, only where q and k have norms.
  at::Tensor qkv, q_inverse_rms, k_inverse_rms, q, k, v, attended;
  at::Tensor residual_mid, inverse_rms_mid, mlp_in, gate_up, gated;
};

struct PolicyTape {
  std::vector<LayerTape> layers;
  at::Tensor final_rows, final_inverse_rms, hidden, cos, sin;
};

}  // namespace octavo
