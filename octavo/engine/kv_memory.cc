#include "octavo/engine/kv_memory.h"

#include <fmt/format.h>

#include "octavo/base/error.h"
#include "octavo/engine/limits.h"

namespace octavo {
namespace {

constexpr std::size_t kDefaultBytes = std::size_t{1} << 30;
// For attention's and sampling's workspaces, captured steps and the libraries' own.
constexpr std::size_t kDeviceReserve = std::size_t{768} << 20;

double gib(std::size_t bytes) { return static_cast<double>(bytes) / static_cast<double>(1 << 30); }

// What steps and captured graphs take of a GPU.
std::size_t step_bytes(const EngineOptions& options, const Model& model) {
  return model.scratch_bytes(options.max_batch_tokens, options.max_sequences,
                             context_of(options, model.spec())) +
         kDeviceReserve;
}

// A CPU's memory is reserved here and taken as it is used, so that too much would only show later.
void check_fits(const EngineOptions& options, const Model& model) {
  const KvGeometry one{
      .num_blocks = 1, .num_kv_heads = model.spec().num_kv_heads, .head_dim = model.spec().head_dim};
  const double token_bytes = static_cast<double>(KvMemory::block_bytes(model.spec().num_layers, one)) /
                             static_cast<double>(KvGeometry::block_size);
  const double kv = options.kv_tokens > 0 ? static_cast<double>(options.kv_tokens) * token_bytes
                                          : static_cast<double>(options.kv_bytes);
  const auto room = model.storage().room();
  const std::size_t total = room ? room->total : physical_memory();
  const std::size_t weights = model.weights().bytes();
  const std::size_t steps = room ? step_bytes(options, model) : 0;
  if (kv + static_cast<double>(weights + steps) > static_cast<double>(total))
    fail(
        "a KV cache of {:.2f} GiB ({:.0f} tokens){} and weights of {:.2f} GiB are more than the {:.2f} GiB "
        "of memory; lower {}{}",
        kv / (1 << 30), kv / token_bytes,
        room ? fmt::format(", steps of {} tokens of {:.2f} GiB", options.max_batch_tokens, gib(steps)) : "",
        gib(weights), gib(total), options.kv_tokens > 0 ? "kv_tokens" : "the KV cache's bytes",
        room ? " or max_batch_tokens" : "");
}

}  // namespace

EngineOptions with_kv_bytes(EngineOptions options, const Model& model) {
  if (options.kv_tokens > 0 || options.kv_bytes > 0) {
    check_fits(options, model);
    return options;
  }
  const auto room = model.storage().room();
  if (!room) {
    options.kv_bytes = kDefaultBytes;
    return options;
  }
  if (!(options.gpu_memory_utilization > 0 && options.gpu_memory_utilization <= 1))
    fail("gpu_memory_utilization is {}; it must be above 0 and at most 1", options.gpu_memory_utilization);
  const auto share =
      static_cast<std::size_t>(static_cast<double>(room->total) * options.gpu_memory_utilization);
  const std::size_t used = room->total - room->free;
  const std::size_t scratch = step_bytes(options, model);
  const KvGeometry one{
      .num_blocks = 1, .num_kv_heads = model.spec().num_kv_heads, .head_dim = model.spec().head_dim};
  const std::size_t block = KvMemory::block_bytes(model.spec().num_layers, one);
  if (share < used + scratch + block)
    fail(
        "no room for a KV cache: gpu_memory_utilization {} of the GPU's {:.2f} GiB is {:.2f} GiB; {:.2f} are "
        "in "
        "use (weights of {:.2f} among them) and steps of {} tokens need {:.2f}; raise it, lower "
        "max_batch_tokens "
        "or free the GPU",
        options.gpu_memory_utilization, gib(room->total), gib(share), gib(used), gib(model.weights().bytes()),
        options.max_batch_tokens, gib(scratch));
  options.kv_bytes = share - used - scratch;
  return options;
}

KvMemory::KvMemory(Storage& storage, std::int64_t num_layers, const KvGeometry& geometry, bool poisonable)
    : storage_(storage), geometry_(geometry), poisonable_(poisonable) {
  if (poisonable) ++geometry_.num_blocks;
  // Blocks are multiples of 512 bytes, so every run starts where bulk copies may.
  const std::size_t side = geometry_.layer_bytes();
  memory_ = storage.allocate(2 * static_cast<std::size_t>(num_layers) * side);
  std::byte* at = memory_->data();
  for (std::int64_t layer = 0; layer < num_layers; ++layer, at += 2 * side)
    layers_.push_back({.keys = at, .values = at + side});
  fill_poison();
}

void KvMemory::fill_poison() {
  if (!poisonable_) return;
  const std::vector<std::byte> poison(geometry_.layer_bytes(), std::byte{0xff});
  for (const KvLayer& layer : layers_)
    for (void* run : {layer.keys, layer.values}) storage_.upload(run, poison.data(), poison.size());
}

void KvMemory::sleep() { memory_->release(); }

void KvMemory::wake() {
  memory_->restore();
  fill_poison();
}

std::size_t KvMemory::block_bytes(std::int64_t num_layers, const KvGeometry& geometry) {
  KvGeometry one = geometry;
  one.num_blocks = 1;
  return 2 * static_cast<std::size_t>(num_layers) * one.layer_bytes();
}

void KvMemory::copy(Ops& ops, std::int32_t from, std::int32_t to) const {
  ops.copy_kv_block(layers_, geometry_, from, to);
}

void KvMemory::poison(Ops& ops, std::int32_t block) const {
  copy(ops, static_cast<std::int32_t>(geometry_.num_blocks - 1), block);
}

}  // namespace octavo
