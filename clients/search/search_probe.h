// What a way of holding the cache does to a model's predictions, over all contexts of a search.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/eval/eval_context.h"

namespace fourierkv {

struct SearchQuality {
  // Mean KL divergence from dense over the tails' tokens and over the answers that the dense model
  // knows, nats: what a search makes small.
  double harm = 0;
  double kl = 0;             // over the tails' tokens alone
  double top_agreement = 0;  // there, 0 to 1
  double bits_per_byte = 0;
  double dense_bits_per_byte = 0;
  int questions = 0;
  int right = 0;
  int dense_right = 0;

  std::string ToString() const;
};

// Unlike fourierkv eval, asks the questions of a context one behind the other in one text: many
// tokens at once are computed much faster, and what counts is the difference to dense. One thread
// at a time.
class SearchProbe {
 public:
  // Measures the dense cache of every context, which must outlive the probe, as must the engine.
  static absl::StatusOr<SearchProbe> Create(const EvalEngine& engine,
                                            std::span<const std::unique_ptr<EvalContext>> contexts);

  absl::StatusOr<SearchQuality> Measure(const CacheForm& form) const;

  const EvalEngine& engine() const { return *engine_; }
  std::span<const std::unique_ptr<EvalContext>> contexts() const { return contexts_; }

 private:
  struct Answer {
    size_t first = 0;  // of its tokens in the conversation
    size_t tokens = 0;
    bool known = false;  // to the dense model
  };
  // Of one context.
  struct Conversation {
    std::vector<int32_t> tokens;  // questions with their answers
    std::vector<Answer> answers;
    std::vector<float> dense_logits;  // [tokens of all answers][vocab]
    TailScore dense_tail;
  };

  SearchProbe(const EvalEngine& engine, std::span<const std::unique_ptr<EvalContext>> contexts)
      : engine_(&engine), contexts_(contexts) {}

  // The logits that predict each token of each answer, [tokens of all answers][vocab].
  absl::StatusOr<std::vector<float>> Ask(const Conversation& conversation,
                                         const EvalContext& context, const CacheForm& form) const;
  // Whether each answer's tokens are all likeliest.
  std::vector<bool> Right(const Conversation& conversation, std::span<const float> logits) const;

  const EvalEngine* engine_;
  std::span<const std::unique_ptr<EvalContext>> contexts_;
  std::vector<Conversation> conversations_;
};

}  // namespace fourierkv
