// The CPU backend.
#pragma once

#include <memory>

#include "octavo/base/cpu_features.h"
#include "octavo/base/thread_pool.h"
#include "octavo/ops/ops.h"

namespace octavo {

// Weights: tiled codes or bf16 (CodeLayout::kTiled). Keys: [block][kv head][head_dim/2][16][2]; values:
// [block][kv head][16][head_dim rounded up to 16]. The pool must outlive the result.
std::unique_ptr<Ops> make_cpu_ops(ThreadPool& pool, Isa isa);

// The same with the instruction sets that are fastest on this machine (kernels.h: fastest_isas).
std::unique_ptr<Ops> make_cpu_ops(ThreadPool& pool);

}  // namespace octavo
