// What a model folder holds besides the tokenizer: a safetensors header, and the same bytes as a config.json.
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "fuzz/check_error.h"
#include "octavo/checkpoint/model_spec.h"
#include "octavo/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  octavo::check_error([&] {
    for (const octavo::TensorInfo& tensor :
         octavo::parse_safetensors_header(std::as_bytes(std::span(data, size)), "input")) {
      assert(tensor.offset <= size && tensor.bytes <= size - tensor.offset);
    }
  });
  octavo::check_error([&] {
    const octavo::ModelSpec spec =
        octavo::parse_hf_config({reinterpret_cast<const char*>(data), size}, "input");
    assert(spec.num_heads % spec.num_kv_heads == 0 && spec.head_dim % 2 == 0 && spec.num_layers > 0);
  });
  return 0;
}
