#include "clients/search/search_probe.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_format.h"
#include "clients/eval/cache_form.h"
#include "clients/eval/logits_math.h"
#include "clients/eval/peek_cache.h"
#include "compute/model/byte_tokenizer.h"
#include "compute/model/llama_runner.h"

namespace fourierkv {
namespace {

constexpr size_t kChunk = 512;

MeasureOptions TailOnly() {
  return {.recall = false, .tail = true, .attention = false, .decoded_per_task = 0};
}

}  // namespace

std::string SearchQuality::ToString() const {
  return absl::StrFormat(
      "KL %.5f nats, top-1 agreement %.2f%%, bits per byte %.4f (dense %.4f), recall %d of %d "
      "(dense %d)",
      kl, 100 * top_agreement, bits_per_byte, dense_bits_per_byte, right, questions, dense_right);
}

absl::StatusOr<SearchProbe> SearchProbe::Create(
    const EvalEngine& engine, std::span<const std::unique_ptr<EvalContext>> contexts) {
  SearchProbe probe(engine, contexts);
  const auto dense = MakeDenseForm(engine.backend);
  for (const auto& context : contexts) {
    Conversation conversation;
    for (const RecallQuestion& question : context->text().questions) {
      const std::vector<int32_t> prompt = EncodeBytes(question.prompt);
      const std::vector<int32_t> answer = EncodeBytes(question.answers.back());
      std::vector<int32_t>& all = conversation.tokens;
      all.insert(all.end(), prompt.begin(), prompt.end());
      conversation.answers.push_back({all.size(), answer.size(), false});
      all.insert(all.end(), answer.begin(), answer.end());
    }
    auto logits = probe.Ask(conversation, *context, *dense);
    if (!logits.ok()) return logits.status();
    conversation.dense_logits = *std::move(logits);
    const std::vector<bool> right = probe.Right(conversation, conversation.dense_logits);
    for (size_t i = 0; i < right.size(); ++i) conversation.answers[i].known = right[i];
    auto tail = context->Measure(*dense, TailOnly());
    if (!tail.ok()) return tail.status();
    conversation.dense_tail = std::move(tail->tail);
    probe.conversations_.push_back(std::move(conversation));
  }
  return probe;
}

absl::StatusOr<std::vector<float>> SearchProbe::Ask(const Conversation& conversation,
                                                    const EvalContext& context,
                                                    const CacheForm& form) const {
  const std::vector<int32_t>& tokens = conversation.tokens;
  std::vector<float> result;
  if (tokens.empty()) return result;
  const auto length = static_cast<int64_t>(tokens.size());
  auto made = form.Make(context.dense(), context.dense().length() + length);
  if (!made.ok()) return made.status();
  PeekCache cache(*made->cache);
  LlamaRunner runner(engine_->model, engine_->pool);
  const size_t vocab = engine_->model->config().vocab_size;
  // Row i predicts token i + 1. Prompts are not empty, so no answer is predicted by the context.
  std::vector<bool> wanted(tokens.size(), false);
  for (const Answer& answer : conversation.answers) {
    std::fill_n(wanted.begin() + (answer.first - 1), answer.tokens, true);
  }
  ForwardOutput out;
  for (size_t first = 0; first < tokens.size(); first += kChunk) {
    const size_t n = std::min(kChunk, tokens.size() - first);
    const absl::Status s =
        runner.Forward(std::span(tokens).subspan(first, n), cache, &out, {.logits = Logits::kAll});
    if (!s.ok()) return s;
    for (size_t i = 0; i < n; ++i) {
      if (!wanted[first + i]) continue;
      result.insert(result.end(), out.logits.begin() + i * vocab,
                    out.logits.begin() + (i + 1) * vocab);
    }
  }
  return result;
}

std::vector<bool> SearchProbe::Right(const Conversation& conversation,
                                     std::span<const float> logits) const {
  const size_t vocab = engine_->model->config().vocab_size;
  std::vector<bool> right;
  size_t row = 0;
  for (const Answer& answer : conversation.answers) {
    bool all = true;
    for (size_t i = 0; i < answer.tokens; ++i, ++row) {
      all &= Likeliest(logits.subspan(row * vocab, vocab)) == conversation.tokens[answer.first + i];
    }
    right.push_back(all);
  }
  return right;
}

absl::StatusOr<SearchQuality> SearchProbe::Measure(const CacheForm& form) const {
  const size_t vocab = engine_->model->config().vocab_size;
  SearchQuality quality;
  TailScore tail, dense_tail;
  double harm = 0, tokens = 0;
  for (size_t c = 0; c < contexts_.size(); ++c) {
    const Conversation& conversation = conversations_[c];
    auto metrics = contexts_[c]->Measure(form, TailOnly());
    if (!metrics.ok()) return metrics.status();
    tail.Add(metrics->tail);
    dense_tail.Add(conversation.dense_tail);
    harm += std::accumulate(metrics->tail.kl.begin(), metrics->tail.kl.end(), 0.0);
    tokens += static_cast<double>(metrics->tail.kl.size());

    const auto logits = Ask(conversation, *contexts_[c], form);
    if (!logits.ok()) return logits.status();
    const std::vector<bool> right = Right(conversation, *logits);
    size_t row = 0;
    for (size_t a = 0; a < conversation.answers.size(); ++a) {
      const Answer& answer = conversation.answers[a];
      ++quality.questions;
      quality.right += right[a];
      quality.dense_right += answer.known;
      for (size_t i = 0; i < answer.tokens; ++i, ++row) {
        if (!answer.known) continue;  // says nothing about a cache
        harm += KlDivergence(std::span(conversation.dense_logits).subspan(row * vocab, vocab),
                             std::span(*logits).subspan(row * vocab, vocab));
        tokens += 1;
      }
    }
  }
  quality.harm = tokens > 0 ? harm / tokens : 0;
  quality.kl = tail.mean_kl();
  quality.top_agreement = tail.top_agreement();
  quality.bits_per_byte = tail.bits_per_byte();
  quality.dense_bits_per_byte = dense_tail.bits_per_byte();
  return quality;
}

}  // namespace fourierkv
