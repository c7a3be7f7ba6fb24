#include "octavo/train/packed_batch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cassert>

namespace octavo {
namespace {

template <typename T>
at::Tensor to_tensor(const std::vector<T>& values, at::Device device) {
  at::Tensor out = at::empty({static_cast<std::int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), out.mutable_data_ptr<std::int64_t>());
  return out.to(device);
}

AttentionRuns make_runs(const std::vector<PackedRun>& runs, at::Device device) {
  std::int64_t queries = 0;
  std::int64_t keys = 0;
  for (const PackedRun& run : runs) {
    queries = std::max(queries, run.count);
    keys = std::max(keys, run.prefix + run.count);
  }
  const auto count = static_cast<std::int64_t>(runs.size());
  at::Tensor query_rows = at::zeros({count, queries}, at::kLong);
  at::Tensor key_rows = at::zeros({count, keys}, at::kLong);
  at::Tensor hidden = at::ones({count, queries, keys}, at::kBool);
  at::Tensor valid = at::zeros({count, queries, 1}, at::kFloat);
  std::vector<std::int64_t> real;
  for (std::int64_t r = 0; r < count; ++r) {
    const PackedRun& run = runs[static_cast<std::size_t>(r)];
    auto* q = query_rows.mutable_data_ptr<std::int64_t>() + r * queries;
    auto* k = key_rows.mutable_data_ptr<std::int64_t>() + r * keys;
    auto* mask = hidden.mutable_data_ptr<bool>() + r * queries * keys;
    auto* ok = valid.mutable_data_ptr<float>() + r * queries;
    for (std::int64_t i = 0; i < run.prefix; ++i) k[i] = run.prefix_begin + i;
    for (std::int64_t i = 0; i < run.count; ++i) k[run.prefix + i] = run.begin + i;
    for (std::int64_t i = 0; i < queries; ++i) {
      // A padded query sees one key, so that its softmax is a number; nothing reads it.
      const std::int64_t visible = i < run.count ? run.prefix + i + 1 : 1;
      std::fill_n(mask + i * keys, visible, false);
      if (i >= run.count) continue;
      q[i] = run.begin + i;
      ok[i] = 1;
      real.push_back(r * queries + i);
    }
  }
  return {query_rows.to(device), key_rows.to(device), hidden.to(device), valid.to(device),
          to_tensor(real, device)};
}

}  // namespace

PackedBatch pack(std::span<const TrainSequence> sequences, at::Device device) {
  PackedBatch batch;
  const auto append = [&](std::span<const std::int32_t> tokens, std::int64_t first_position) {
    const auto begin = static_cast<std::int64_t>(batch.host_ids.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      batch.host_ids.push_back(tokens[i]);
      batch.host_positions.push_back(
          static_cast<std::int32_t>(first_position + static_cast<std::int64_t>(i)));
    }
    return begin;
  };
  std::vector<std::size_t> prompt_of;
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    const auto& [prompt, response] = sequences[s];
    assert(!prompt.empty() && !response.empty());
    if (s == 0 || !std::ranges::equal(prompt, sequences[s - 1].prompt))
      batch.prompts.push_back(
          {.begin = append(prompt, 0), .count = static_cast<std::int64_t>(prompt.size())});
    prompt_of.push_back(batch.prompts.size() - 1);
  }
  batch.prompt_tokens = static_cast<std::int64_t>(batch.host_ids.size());

  std::vector<std::int64_t> logit_rows;
  std::vector<std::int64_t> targets;
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    const std::span<const std::int32_t> response = sequences[s].response;
    const PackedRun& prompt = batch.prompts[prompt_of[s]];
    const std::int64_t begin = append(response.first(response.size() - 1), prompt.count);
    if (response.size() > 1)
      batch.responses.push_back({.begin = begin,
                                 .count = static_cast<std::int64_t>(response.size()) - 1,
                                 .prompt = prompt_of[s],
                                 .prefix_begin = prompt.begin,
                                 .prefix = prompt.count});
    for (std::size_t i = 0; i < response.size(); ++i) {
      logit_rows.push_back(i == 0 ? prompt.begin + prompt.count - 1
                                  : begin + static_cast<std::int64_t>(i) - 1);
      targets.push_back(response[i]);
    }
    batch.lengths.push_back(static_cast<std::int64_t>(response.size()));
  }
  batch.token_ids = to_tensor(batch.host_ids, device);
  batch.positions = to_tensor(batch.host_positions, device);
  batch.logit_rows = to_tensor(logit_rows, device);
  batch.targets = to_tensor(targets, device);
  batch.runs.push_back(make_runs(batch.prompts, device));
  if (!batch.responses.empty()) batch.runs.push_back(make_runs(batch.responses, device));
  return batch;
}

}  // namespace octavo
