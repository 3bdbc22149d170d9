#include "clients/eval/eval_context.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "clients/eval/logits_math.h"
#include "clients/eval/peek_cache.h"
#include "compute/model/byte_tokenizer.h"

namespace fourierkv {
namespace {

constexpr int64_t kPrefillChunk = 512;
constexpr int64_t kTailChunk = 256;

}  // namespace

// Keeps what passes between the model and a cache.
class EvalContext::ProbeRecorder final : public KvCache {
 public:
  ProbeRecorder(KvCache& base, std::vector<Probe>& probes) : base_(base), probes_(probes) {}

  const KvGeometry& geometry() const override { return base_.geometry(); }
  int64_t length() const override { return base_.length(); }
  int64_t bytes() const override { return base_.bytes(); }
  absl::Status Append(int layer, int n, const float* k, const float* v) override {
    const int64_t size = int64_t{n} * geometry().kv_heads * geometry().head_dim;
    probes_[layer].k.assign(k, k + size);
    probes_[layer].v.assign(v, v + size);
    return base_.Append(layer, n, k, v);
  }
  absl::Status Attend(int layer, int n, int query_heads, const float* q, float* out) override {
    absl::Status s = base_.Attend(layer, n, query_heads, q, out);
    const int64_t size = int64_t{n} * query_heads * geometry().head_dim;
    probes_[layer].q.assign(q, q + size);
    probes_[layer].out.assign(out, out + size);
    return s;
  }
  absl::Status Advance(int n) override { return base_.Advance(n); }

 private:
  KvCache& base_;
  std::vector<Probe>& probes_;
};

absl::StatusOr<std::unique_ptr<EvalContext>> EvalContext::Create(EvalEngine engine, EvalText text,
                                                                 int probe_tokens) {
  if (engine.model->config().vocab_size < 256) {
    return absl::InvalidArgumentError(
        absl::StrCat("the model has a vocabulary of ", engine.model->config().vocab_size,
                     " and cannot read bytes; give a byte-level one"));
  }
  if (text.context.empty()) return absl::InvalidArgumentError("the context is empty");
  std::unique_ptr<EvalContext> context(new EvalContext(std::move(engine), std::move(text)));
  if (absl::Status s = context->Prefill(probe_tokens); !s.ok()) return s;
  return context;
}

EvalContext::EvalContext(EvalEngine engine, EvalText text)
    : engine_(std::move(engine)),
      text_(std::move(text)),
      tail_(EncodeBytes(text_.tail)),
      runner_(engine_.model, engine_.pool) {}

int64_t EvalContext::max_tokens() const {
  size_t longest = 0;
  for (const RecallQuestion& question : text_.questions) {
    for (const std::string& answer : question.answers) {
      longest = std::max(longest, question.prompt.size() + answer.size());
    }
  }
  return static_cast<int64_t>(text_.context.size() + std::max(tail_.size(), longest) + 1);
}

absl::Status EvalContext::Prefill(int probe_tokens) {
  const ModelConfig& config = engine_.model->config();
  if (max_tokens() - 1 > config.max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat("the context and what follows it take ",
                                                   max_tokens() - 1, " tokens; the model has ",
                                                   config.max_position_embeddings, " positions"));
  }
  auto cache = DenseKvCache::Create(config.Geometry(), engine_.backend, max_tokens());
  if (!cache.ok()) return cache.status();
  dense_ = *std::move(cache);
  ForwardOutput out;
  absl::Status s =
      fourierkv::Prefill(runner_, EncodeBytes(text_.context), *dense_, &out, kPrefillChunk);
  if (!s.ok()) return s;
  if (!tail_.empty()) {
    const std::unique_ptr<CacheForm> form = MakeDenseForm(engine_.backend);
    absl::StatusOr<FormedCache> copy = form->Make(*dense_, max_tokens());
    if (!copy.ok()) return copy.status();
    if (s = ProbeDense(probe_tokens); !s.ok()) return s;
    if (s = RunTail(*form, *copy->cache, &tail_logits_); !s.ok()) return s;
  }
  return AskDense();
}

absl::Status EvalContext::ProbeDense(int probe_tokens) {
  const size_t n = std::min<size_t>(std::max(probe_tokens, 1), tail_.size());
  probes_.resize(dense_->geometry().layers);
  PeekCache peek(*dense_);
  ProbeRecorder recorder(peek, probes_);
  ForwardOptions options;
  options.logits = Logits::kAll;  // so that every layer attends with every query
  ForwardOutput out;
  return runner_.Forward(std::span(tail_).first(n), recorder, &out, options);
}

absl::Status EvalContext::RunTail(const CacheForm& form, KvCache& cache,
                                  std::vector<float>* logits) {
  ForwardOptions options;
  options.logits = Logits::kAll;
  ForwardOutput out;
  logits->clear();
  for (size_t first = 0; first < tail_.size();) {
    const int64_t chunk = std::min(kTailChunk, form.ChunkTokens(cache.length()));
    const size_t n = std::min<size_t>(std::max<int64_t>(chunk, 1), tail_.size() - first);
    absl::Status s = runner_.Forward(std::span(tail_).subspan(first, n), cache, &out, options);
    if (!s.ok()) return s;
    logits->insert(logits->end(), out.logits.begin(), out.logits.end());
    first += n;
  }
  return absl::OkStatus();
}

absl::StatusOr<TailScore> EvalContext::MeasureTail(const CacheForm& form, KvCache& cache) {
  std::vector<float> logits;
  if (absl::Status s = RunTail(form, cache, &logits); !s.ok()) return s;
  const size_t vocab = engine_.model->config().vocab_size;
  TailScore score;
  for (size_t i = 0; i < tail_.size(); ++i) {
    const auto mine = std::span<const float>(logits).subspan(i * vocab, vocab);
    const auto dense = tail_logits().subspan(i * vocab, vocab);
    score.kl.push_back(static_cast<float>(KlDivergence(dense, mine)));
    score.same_top += Likeliest(dense) == Likeliest(mine);
    if (i + 1 < tail_.size()) score.nll.push_back(static_cast<float>(Nll(mine, tail_[i + 1])));
  }
  return score;
}

absl::StatusOr<std::vector<double>> EvalContext::MeasureAttention(KvCache& cache) const {
  const ModelConfig& config = engine_.model->config();
  const int64_t q_size = int64_t{config.query_heads} * config.head_dim;
  std::vector<double> errors;
  std::vector<float> out;
  for (int layer = 0; layer < static_cast<int>(probes_.size()); ++layer) {
    const Probe& probe = probes_[layer];
    const int n = static_cast<int>(probe.q.size() / q_size);
    out.resize(probe.out.size());
    absl::Status s = cache.Append(layer, n, probe.k.data(), probe.v.data());
    if (s.ok()) s = cache.Attend(layer, n, config.query_heads, probe.q.data(), out.data());
    if (!s.ok()) return s;
    double error = 0, norm = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      const double difference = static_cast<double>(out[i]) - probe.out[i];
      error += difference * difference;
      norm += static_cast<double>(probe.out[i]) * probe.out[i];
    }
    errors.push_back(norm > 0 ? std::sqrt(error / norm) : 0);
  }
  return errors;
}

absl::StatusOr<FormMetrics> EvalContext::Measure(const CacheForm& form,
                                                 const MeasureOptions& options) {
  absl::StatusOr<FormedCache> made = form.Make(*dense_, max_tokens());
  if (!made.ok()) return made.status();
  FormMetrics metrics;
  metrics.bytes = made->bytes;
  if (options.attention) {
    auto errors = MeasureAttention(*made->cache);
    if (!errors.ok()) return errors.status();
    metrics.attention_error = *std::move(errors);
  }
  if (options.recall) {
    absl::Status s = MeasureRecall(*made->cache, options.decoded_per_task, &metrics);
    if (!s.ok()) return s;
  }
  if (options.tail) {  // last: it changes the cache
    auto tail = MeasureTail(form, *made->cache);
    if (!tail.ok()) return tail.status();
    metrics.tail = *std::move(tail);
  }
  return metrics;
}

}  // namespace fourierkv
