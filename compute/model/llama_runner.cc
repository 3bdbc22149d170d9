#include "compute/model/llama_runner.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "compute/model/dense_ops.h"

namespace fourierkv {

LlamaRunner::LlamaRunner(std::shared_ptr<const LlamaModel> model, std::shared_ptr<ThreadPool> pool)
    : model_(std::move(model)), pool_(std::move(pool)) {}

absl::Status LlamaRunner::CheckInput(std::span<const int32_t> tokens, const KvCache& cache) const {
  const ModelConfig& c = model_->config();
  if (tokens.empty()) return absl::InvalidArgumentError("tokens is empty; give at least one");
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= c.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tokens[", i, "] is ", tokens[i], "; the vocabulary is 0 to ", c.vocab_size - 1));
    }
  }
  if (!(cache.geometry() == c.Geometry())) {
    return absl::InvalidArgumentError("the cache was made for a model of another geometry");
  }
  const auto n = static_cast<int64_t>(tokens.size());
  if (n > c.max_position_embeddings - cache.length()) {
    return absl::OutOfRangeError(absl::StrCat("position ", cache.length() + n - 1,
                                              " is beyond the model's last one, ",
                                              c.max_position_embeddings - 1));
  }
  return absl::OkStatus();
}

absl::Status LlamaRunner::Forward(std::span<const int32_t> tokens, KvCache& cache,
                                  ForwardOutput* out, const ForwardOptions& options) {
  if (absl::Status s = CheckInput(tokens, cache); !s.ok()) return s;
  const ModelConfig& c = model_->config();
  const int n = static_cast<int>(tokens.size());
  const int64_t hidden = c.hidden_size;

  x_.resize(n * hidden);
  for (int i = 0; i < n; ++i) {
    const float* row = model_->embeddings().data() + tokens[i] * hidden;
    std::copy_n(row, hidden, x_.data() + i * hidden);
  }
  const Rope::Table rope = model_->rope().MakeTable(cache.length(), n);
  const int wanted = options.logits == Logits::kAll ? n : options.logits == Logits::kLast ? 1 : 0;
  for (int layer = 0; layer < c.layers; ++layer) {
    const int rows = layer + 1 == c.layers ? wanted : n;
    if (absl::Status s = RunLayer(layer, n, rows, cache, rope, options); !s.ok()) return s;
  }
  out->logits.resize(static_cast<size_t>(wanted) * c.vocab_size);
  if (wanted > 0) {
    RmsNorm(*pool_, x_.data() + (n - wanted) * hidden, wanted, hidden, model_->final_norm().data(),
            c.rms_norm_eps, norm_.data());
    MatMul(*pool_, norm_.data(), wanted, hidden, model_->output().data(), c.vocab_size,
           out->logits.data());
  }
  return cache.Advance(n);
}

absl::Status LlamaRunner::RunLayer(int layer, int n, int rows, KvCache& cache,
                                   const Rope::Table& rope, const ForwardOptions& options) {
  const ModelConfig& c = model_->config();
  const LlamaLayer& weights = model_->layers()[layer];
  const int64_t hidden = c.hidden_size;
  const int64_t q_size = int64_t{c.query_heads} * c.head_dim;
  const int64_t kv_size = int64_t{c.kv_heads} * c.head_dim;
  // Queries of tokens whose output nobody reads are only needed by an observer.
  const int q_rows = options.on_qkv ? n : rows;
  const int q_first = n - q_rows;

  norm_.resize(n * hidden);
  q_.resize(q_rows * q_size);
  k_.resize(n * kv_size);
  v_.resize(n * kv_size);
  RmsNorm(*pool_, x_.data(), n, hidden, weights.attention_norm.data(), c.rms_norm_eps,
          norm_.data());
  MatMul(*pool_, norm_.data(), n, hidden, weights.k.data(), kv_size, k_.data());
  MatMul(*pool_, norm_.data(), n, hidden, weights.v.data(), kv_size, v_.data());
  if (q_rows > 0) {
    MatMul(*pool_, norm_.data() + q_first * hidden, q_rows, hidden, weights.q.data(), q_size,
           q_.data());
  }
  ForRows(*pool_, n, [&](int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) {
      const float* cos = rope.cos.data() + i * (c.head_dim / 2);
      const float* sin = rope.sin.data() + i * (c.head_dim / 2);
      Rope::Rotate(c.kv_heads, c.head_dim, cos, sin, k_.data() + i * kv_size);
      if (i >= q_first) {
        Rope::Rotate(c.query_heads, c.head_dim, cos, sin, q_.data() + (i - q_first) * q_size);
      }
    }
  });
  if (absl::Status s = cache.Append(layer, n, k_.data(), v_.data()); !s.ok()) return s;
  if (options.on_qkv) {
    absl::Status s = options.on_qkv(layer, cache.length(), n, q_.data(), k_.data(), v_.data());
    if (!s.ok()) return s;
  }
  if (options.on_layer) {
    if (absl::Status s = options.on_layer(layer); !s.ok()) return s;
  }
  if (rows == 0) return absl::OkStatus();

  attention_.resize(rows * q_size);
  const float* q = q_.data() + (q_rows - rows) * q_size;
  absl::Status s = cache.Attend(layer, rows, c.query_heads, q, attention_.data());
  if (!s.ok()) return s;
  float* x = x_.data() + (n - rows) * hidden;
  MatMul(*pool_, attention_.data(), rows, q_size, weights.o.data(), hidden, x, /*accumulate=*/true);
  RunMlp(weights, rows, x);
  return absl::OkStatus();
}

void LlamaRunner::RunMlp(const LlamaLayer& weights, int rows, float* x) {
  const ModelConfig& c = model_->config();
  const int64_t hidden = c.hidden_size, inner = c.intermediate_size;
  gate_.resize(rows * inner);
  up_.resize(rows * inner);
  RmsNorm(*pool_, x, rows, hidden, weights.mlp_norm.data(), c.rms_norm_eps, norm_.data());
  MatMul(*pool_, norm_.data(), rows, hidden, weights.gate.data(), inner, gate_.data());
  MatMul(*pool_, norm_.data(), rows, hidden, weights.up.data(), inner, up_.data());
  SiluMul(*pool_, rows, inner, up_.data(), gate_.data());
  MatMul(*pool_, gate_.data(), rows, inner, weights.down.data(), hidden, x, /*accumulate=*/true);
}

absl::Status Prefill(LlamaRunner& runner, std::span<const int32_t> tokens, KvCache& cache,
                     ForwardOutput* out, int chunk_tokens, ForwardOptions options) {
  if (chunk_tokens < 1) return absl::InvalidArgumentError("chunk_tokens must be at least 1");
  if (tokens.empty()) return absl::InvalidArgumentError("tokens is empty; give at least one");
  for (size_t first = 0; first < tokens.size();) {
    const size_t n = std::min<size_t>(chunk_tokens, tokens.size() - first);
    options.logits = first + n == tokens.size() ? Logits::kLast : Logits::kNone;
    absl::Status s = runner.Forward(tokens.subspan(first, n), cache, out, options);
    if (!s.ok()) return s;
    first += n;
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
