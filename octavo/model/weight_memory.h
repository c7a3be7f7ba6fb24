// Where the weights' bytes are, behind one interface: what a backend must know how to do with them.
//
// Everything that reads or writes a weight other than the forward pass comes through here: loading, refit,
// checksums, sleep. The table of names (weights.h), the manifest and the transaction (octavo/refit/) know
// places, never addresses, so a backend whose weights lie in device memory implements this class and nothing
// else changes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "octavo/base/tensor_view.h"
#include "octavo/base/thread_pool.h"
#include "octavo/quant/block_scaling.h"

namespace octavo {

// How one HF tensor is kept, and where in a region. Rows are padded to whole tiles of 16.
struct WeightPlace {
  enum class Form : std::uint8_t { kF32, kBF16, kE4M3 };

  Form form = Form::kF32;
  std::int64_t rows = 1;  // of the HF tensor; a vector is one row
  std::int64_t cols = 0;
  std::size_t data = 0;          // of its first value or code, in bytes from the region's start
  std::size_t scales = 0;        // kE4M3: of its FP32 scales [blocks_of(rows), blocks_of(cols)]
  std::uint64_t seed = 0;        // of its checksum (weight_checksum.h)
  std::uint64_t scale_seed = 0;  // and of that of its scales

  std::int64_t element_bytes() const { return form == Form::kE4M3 ? 1 : form == Form::kBF16 ? 2 : 4; }
  std::int64_t scale_bytes() const {
    return form == Form::kE4M3 ? blocks_of(rows) * blocks_of(cols) * std::int64_t{sizeof(float)} : 0;
  }
  // Without padding.
  std::int64_t bytes() const { return rows * cols * element_bytes() + scale_bytes(); }
};

// A piece of a tensor on its way to its place; its first element is (row, col).
struct WeightPiece {
  const WeightPlace* place = nullptr;
  std::int64_t row = 0;
  std::int64_t col = 0;
  TensorView values;
};

// One thread at a time calls write, write_codes, stage, copy_from_live and discard; another one
// may at the same time read the live region, which only writes without staging, install, sleep and wake
// change.
class WeightMemory {
 public:
  virtual ~WeightMemory() = default;

  // Makes the live region, which the model computes with: zeros, aligned to 64 bytes, at an address that
  // never changes. Called once.
  virtual std::byte* allocate(std::size_t bytes) = 0;

  // Writes pieces of tensors as their places' forms say. The values of a piece are f32, bf16 or f16, in host
  // memory or, where the backend computes on a GPU, in the GPU's. A piece begins at multiples of 128 and ends
  // at such or where its tensor ends. Returns for each the flat index in the piece (r * piece cols + c) of
  // its first value that is not finite in the form it is kept in, if there is one; what has been written of
  // that piece is then unspecified. Nothing refers to the values afterwards.
  virtual std::vector<std::optional<std::int64_t>> write(std::span<const WeightPiece> pieces,
                                                         const ScalingOptions& scaling, ThreadPool& pool) = 0;
  // E4M3 codes and their scales (dense, one a 128×128 block), taken as they are. The piece is whole rows from
  // a multiple of 128. Returns the index of the first NaN code.
  virtual std::optional<std::int64_t> write_codes(const WeightPlace& place, std::int64_t row,
                                                  const TensorView& codes, const float* scales,
                                                  ThreadPool& pool) = 0;

  // A second region, for weights to come: from stage() on writes go there. install() makes its contents the
  // live region's, whose address stays, and is short: nobody may compute meanwhile. Both install() and
  // discard() give the second region's memory back. copy_from_live() brings a tensor that does not change.
  virtual void stage() = 0;
  virtual void copy_from_live(const WeightPlace& place) = 0;
  virtual void install() = 0;
  virtual void discard() = 0;

  // The live tensor's part of the checksum.
  virtual std::uint64_t checksum(const WeightPlace& place, ThreadPool& pool) const = 0;

  // Gives the live region's memory back to the system, keeping its address; with `keep_copy`, after putting
  // its contents elsewhere. wake() brings memory and contents back; without a copy it returns false, and the
  // contents are unspecified.
  virtual void sleep(bool keep_copy) = 0;
  virtual bool wake() = 0;
};

// Weights in host memory, matrices in tiles (CodeLayout::kTiled).
std::unique_ptr<WeightMemory> make_cpu_weight_memory();

// Keeps nothing but the checksum of what is written: that of an engine which would get the same tensors.
class ChecksumMemory : public WeightMemory {
 public:
  virtual std::uint64_t sum() const = 0;
};
std::unique_ptr<ChecksumMemory> make_checksum_memory();

}  // namespace octavo
