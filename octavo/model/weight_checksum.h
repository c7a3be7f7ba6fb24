// The checksum of a model's weights as they are computed with: codes, scales, bf16 and FP32 values.
//
// A sum modulo 2^64 of one hash a word, so the order in which words, rows, tensors or shards are added does
// not matter, and any party that holds a part of a tensor can contribute that part. A word is 8 bytes of a
// row, little-endian, the last one of a row filled up with zeros: 8 codes, 4 bf16 values or 2 FP32 values.
// Its hash mixes (seed of the tensor, number of the word in the whole tensor, its bits) with the multiply and
// xor-shift steps of MurmurHash3's finalizer (Appleby, public domain). The seed of a tensor is XXH3-64 of its
// HF name, that of its scales, of which each is a word of its own, XXH3-64 of the name with "_scale_inv".
#pragma once

#include <cstdint>
#include <string_view>

#include "octavo/base/thread_pool.h"
#include "octavo/model/weight_memory.h"
#include "octavo/quant/code_layout.h"

namespace octavo {

std::uint64_t checksum_seed(std::string_view name);

constexpr std::uint64_t word_hash(std::uint64_t seed, std::uint64_t number, std::uint64_t word) {
  std::uint64_t h = word ^ (seed + number * 0x9e3779b97f4a7c15U);
  h = (h ^ (h >> 33)) * 0xff51afd7ed558ccdU;
  h = (h ^ (h >> 33)) * 0xc4ceb9fe1a85ec53U;
  return h ^ (h >> 33);
}

// What a piece of a tensor contributes: its codes or values, and its scales. `data` and `scales` are in host
// memory: kF32 as a dense row, codes and bf16 values in `layout` as a [rows, cols] matrix of their own. The
// piece's first element is (row, col) of the place; row and col are multiples of 128.
std::uint64_t checksum_of_piece(const WeightPlace& place, std::int64_t row, std::int64_t col,
                                std::int64_t rows, std::int64_t cols, CodeLayout layout, const void* data,
                                const float* scales, ThreadPool& pool);

}  // namespace octavo
