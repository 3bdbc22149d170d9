// What a way of holding the cache does to a model's predictions, over all contexts of a search.

#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/eval/eval_context.h"

namespace fourierkv {

struct SearchQuality {
  double harm = 0;           // Harm(), mean over contexts
  double kl = 0;             // mean over the tails' tokens, nats
  double top_agreement = 0;  // 0 to 1
  double bits_per_byte = 0;
  double dense_bits_per_byte = 0;
  int questions = 0;  // of the recall tasks
  int right = 0;
  int dense_right = 0;

  std::string ToString() const;
};

// The mean, over the tail's tokens and the answers that the dense model knows, of the KL divergence
// from dense. For answers, the loss in log-likelihood stands for it. Nats.
double Harm(const FormMetrics& form, const FormMetrics& dense);

// One thread at a time.
class SearchProbe {
 public:
  // Measures the dense cache of every context, which must outlive the probe, as must the engine.
  static absl::StatusOr<SearchProbe> Create(const EvalEngine& engine,
                                            std::span<const std::unique_ptr<EvalContext>> contexts);

  absl::StatusOr<SearchQuality> Measure(const CacheForm& form) const;

  const EvalEngine& engine() const { return *engine_; }
  std::span<const std::unique_ptr<EvalContext>> contexts() const { return contexts_; }

 private:
  SearchProbe(const EvalEngine& engine, std::span<const std::unique_ptr<EvalContext>> contexts)
      : engine_(&engine), contexts_(contexts) {}

  const EvalEngine* engine_;
  std::span<const std::unique_ptr<EvalContext>> contexts_;
  std::vector<FormMetrics> dense_;  // per context
};

}  // namespace fourierkv
