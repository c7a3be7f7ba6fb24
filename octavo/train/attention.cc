#include "octavo/train/attention.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

namespace octavo {
namespace {

// Some runs' rows in the shapes of batched products. A batch is one run's KV head with its `group` query
// heads.
struct Gathered {
  at::Tensor q;  // [runs · kv_heads, group · queries, head_dim]
  at::Tensor k;  // [runs · kv_heads, keys, head_dim]
  at::Tensor v;
  at::Tensor probabilities;  // [runs · kv_heads, group · queries, keys]
  double scale = 0;
};

struct Shape {
  Shape(const at::Tensor& q, const at::Tensor& k, const AttentionRuns& r)
      : heads(q.size(1)),
        kv_heads(k.size(1)),
        group(heads / kv_heads),
        head_dim(q.size(2)),
        runs(r.query_rows.size(0)),
        queries(r.query_rows.size(1)),
        keys(r.key_rows.size(1)) {}

  std::int64_t heads, kv_heads, group, head_dim, runs, queries, keys;
};

// x [T, heads, head_dim] at `query_rows` → [runs · kv_heads, group · queries, head_dim].
at::Tensor gather_queries(const at::Tensor& x, const AttentionRuns& runs, const Shape& s) {
  return x.index_select(0, runs.query_rows.flatten())
      .view({s.runs, s.queries, s.kv_heads, s.group, s.head_dim})
      .permute({0, 2, 3, 1, 4})
      .reshape({s.runs * s.kv_heads, s.group * s.queries, s.head_dim});
}

// The way back: [runs · queries, heads, head_dim].
at::Tensor ungather_queries(const at::Tensor& x, const Shape& s) {
  return x.view({s.runs, s.kv_heads, s.group, s.queries, s.head_dim})
      .permute({0, 3, 1, 2, 4})
      .reshape({s.runs * s.queries, s.heads, s.head_dim});
}

at::Tensor gather_keys(const at::Tensor& x, const AttentionRuns& runs, const Shape& s) {
  return x.index_select(0, runs.key_rows.flatten())
      .view({s.runs, s.keys, s.kv_heads, s.head_dim})
      .permute({0, 2, 1, 3})
      .reshape({s.runs * s.kv_heads, s.keys, s.head_dim});
}

at::Tensor ungather_keys(const at::Tensor& x, const Shape& s) {
  return x.view({s.runs, s.kv_heads, s.keys, s.head_dim})
      .permute({0, 2, 1, 3})
      .reshape({s.runs * s.keys, s.kv_heads, s.head_dim});
}

Gathered gather(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionRuns& runs,
                const Shape& s) {
  Gathered g{gather_queries(q, runs, s), gather_keys(k, runs, s), gather_keys(v, runs, s), {}, 0};
  g.scale = 1.0 / std::sqrt(static_cast<double>(s.head_dim));
  at::Tensor scores = at::bmm(g.q, g.k.transpose(1, 2)).mul_(g.scale);
  scores.view({s.runs, s.kv_heads * s.group, s.queries, s.keys})
      .masked_fill_(runs.hidden.unsqueeze(1), -std::numeric_limits<float>::infinity());
  g.probabilities = at::softmax(scores, -1);
  return g;
}

}  // namespace

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const std::vector<AttentionRuns>& runs) {
  at::Tensor out = at::empty_like(q);
  for (const AttentionRuns& r : runs) {
    const Shape s(q, k, r);
    const Gathered g = gather(q, k, v, r, s);
    const at::Tensor rows = ungather_queries(at::bmm(g.probabilities, g.v), s).index_select(0, r.real);
    out.index_copy_(0, r.query_rows.flatten().index_select(0, r.real), rows);
  }
  return out.flatten(1);
}

AttentionGradients attention_backward(const at::Tensor& gradient, const at::Tensor& q, const at::Tensor& k,
                                      const at::Tensor& v, const std::vector<AttentionRuns>& runs) {
  AttentionGradients out{at::zeros_like(q), at::zeros_like(k), at::zeros_like(v)};
  const at::Tensor d_out = gradient.view_as(q);
  for (const AttentionRuns& r : runs) {
    const Shape s(q, k, r);
    const Gathered g = gather(q, k, v, r, s);
    const at::Tensor& p = g.probabilities;
    at::Tensor d = gather_queries(d_out, r, s);
    d.view({s.runs, s.kv_heads * s.group, s.queries, s.head_dim}).mul_(r.valid.unsqueeze(1));
    const at::Tensor d_v = at::bmm(p.transpose(1, 2), d);
    at::Tensor d_scores = at::bmm(d, g.v.transpose(1, 2));
    // Softmax's gradient: p · (dp - Σ dp · p).
    d_scores = d_scores.sub_((d_scores * p).sum(-1, true)).mul_(p).mul_(g.scale);
    const at::Tensor d_q = ungather_queries(at::bmm(d_scores, g.k), s).index_select(0, r.real);
    out.q.index_copy_(0, r.query_rows.flatten().index_select(0, r.real), d_q);
    // Padding adds zeros to row 0: no query sees it.
    const at::Tensor rows = r.key_rows.flatten();
    out.k.index_add_(0, rows, ungather_keys(at::bmm(d_scores.transpose(1, 2), g.q), s));
    out.v.index_add_(0, rows, ungather_keys(d_v, s));
  }
  return out;
}

}  // namespace octavo
