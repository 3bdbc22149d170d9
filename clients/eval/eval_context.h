// A long context that was prefilled once, and measures of caches made from it.
//
//   auto context = EvalContext::Create(engine, text);               // prefill: the expensive part
//   auto form = MakeCompactForm("mine", layout, window, backend);
//   auto metrics = (*context)->Measure(*form);                      // as often as wanted

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/eval/cache_form.h"
#include "clients/eval/eval_text.h"
#include "compute/backend/compute_backend.h"
#include "compute/base/thread_pool.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/model/llama_model.h"
#include "compute/model/llama_runner.h"

namespace fourierkv {

// What computes. `backend` must outlive everything made with it.
struct EvalEngine {
  std::shared_ptr<const LlamaModel> model;
  std::shared_ptr<ThreadPool> pool;
  ComputeBackend* backend = nullptr;
};

// Answers to the questions of one task. Greedy decoding gives an answer exactly if each of its
// tokens is the likeliest one behind the question and the tokens before it: no decoding is needed
// to know.
struct TaskScore {
  RecallTask task = RecallTask::kNeedle;
  int questions = 0;
  int right = 0;               // greedy decoding gives one of the right answers
  int agree = 0;               // it gives what the dense cache gives, right or wrong
  std::vector<int> picks;      // how often right answer 0, 1, ... of the text was given
  int64_t answer_tokens = 0;   // of one right answer per question, the dense cache's if it has one
  int64_t tokens_right = 0;    // of them likeliest behind the right tokens before
  int64_t tokens_agree = 0;    // of them with the same likeliest token as with the dense cache
  double nll = 0;              // mean negative log-likelihood of those tokens, nats
  double smallest_margin = 0;  // over those tokens: right logit - largest other one

  void Add(const TaskScore& other);
};

// The text behind the context, token by token, each token seeing what it would see while decoding.
struct TailScore {
  std::vector<float> nll;  // of token i + 1 behind token i, nats
  std::vector<float> kl;   // KL(dense || form) of the distribution behind token i, nats
  int64_t same_top = 0;    // how often the likeliest token is the dense cache's

  void Add(const TailScore& other);
  // All of these are 0 without tokens.
  double bits_per_byte() const;
  double mean_kl() const;
  double kl_quantile(double q) const;  // q = 0.99: what 99% of tokens do not exceed
  double top_agreement() const;
};

struct FormMetrics {
  FormBytes bytes;
  std::vector<TaskScore> tasks;  // in the order of the questions
  TailScore tail;
  // Per layer: ||o - o_dense|| / ||o_dense|| of attention's output for the same queries.
  std::vector<double> attention_error;
  // Answers also decoded token by token, and how many of them were what the figures above say.
  int decoded = 0;
  int decoded_agree = 0;
};

// Several contexts as one: counts and bytes are summed, tails joined, attention errors averaged.
FormMetrics Combine(std::span<const FormMetrics> metrics);

struct MeasureOptions {
  bool recall = true;
  bool tail = true;
  bool attention = true;
  int decoded_per_task = 1;  // questions whose answers are also decoded token by token
};

// One thread at a time.
class EvalContext {
 public:
  // Runs text.context through the model. The first `probe_tokens` of the tail are the queries that
  // attention errors are measured with. InvalidArgument for a model whose tokens are not bytes, an
  // empty context, or a text that is longer than the model's positions.
  static absl::StatusOr<std::unique_ptr<EvalContext>> Create(EvalEngine engine, EvalText text,
                                                             int probe_tokens = 128);

  // Makes the cache and measures it. What is not asked for in `options` stays empty. Errors as
  // CacheForm::Make and LlamaRunner::Forward.
  absl::StatusOr<FormMetrics> Measure(const CacheForm& form, const MeasureOptions& options = {});

  const EvalText& text() const { return text_; }
  const DenseKvCache& dense() const { return *dense_; }
  // Of the dense cache behind each token of the tail: [tail tokens][vocab].
  std::span<const float> tail_logits() const { return tail_logits_; }

 private:
  struct Probe {  // of one layer: what attention was asked and what the dense cache answered
    std::vector<float> k, v, q, out;
  };
  struct Question {
    RecallTask task;
    std::vector<int32_t> prompt;
    std::vector<std::vector<int32_t>> answers;  // right ones
    std::vector<int32_t> reference;             // the right one that tokens are counted for
    std::vector<int32_t> dense_tops;  // the dense cache's likeliest tokens along `reference`
    std::vector<int32_t> dense_pick;  // what it decodes; empty for kCopy
  };
  class ProbeRecorder;
  class Asker;

  EvalContext(EvalEngine engine, EvalText text);

  int64_t max_tokens() const;
  absl::Status Prefill(int probe_tokens);
  absl::Status AskDense();
  absl::Status ProbeDense(int probe_tokens);
  absl::Status RunTail(const CacheForm& form, KvCache& cache, std::vector<float>* logits);
  absl::StatusOr<TailScore> MeasureTail(const CacheForm& form, KvCache& cache);
  absl::StatusOr<std::vector<double>> MeasureAttention(KvCache& cache) const;
  absl::Status MeasureRecall(KvCache& cache, int decoded_per_task, FormMetrics* metrics);

  const EvalEngine engine_;
  const EvalText text_;
  const std::vector<int32_t> tail_;
  LlamaRunner runner_;
  std::unique_ptr<DenseKvCache> dense_;
  std::vector<Question> questions_;
  std::vector<Probe> probes_;
  std::vector<float> tail_logits_;
};

}  // namespace fourierkv
