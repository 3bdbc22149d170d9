// The recall task that needle-4m was taught: facts hidden in a text, and questions about them.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/cache/compact_kv_cache.h"
#include "compute/model/llama_runner.h"

namespace fourierkv {

struct NeedleFact {
  std::string name;    // 8 lower-case letters, consonant and vowel in turn
  std::string digits;  // 7
};

struct NeedlePrompt {
  std::string text;
  std::vector<NeedleFact> facts;
};

// `length` bytes of `background` (repeated if it is short, non-ASCII as '?'), in which `facts`
// facts replace what stood there, all between bytes `first` and `last`. The same seed gives the
// same prompt on every machine. Requires room: 128 bytes a fact.
NeedlePrompt MakeNeedlePrompt(const std::string& background, int length, int facts, int first,
                              int last, uint64_t seed);

std::string NeedleQuestion(const NeedleFact& fact);

// How well a cache that holds a prompt answers.
struct NeedleScore {
  int questions = 0;
  int exact = 0;         // all digits are what greedy decoding would give
  int digits = 0;        // single digits that are
  double digit_nll = 0;  // mean negative log-likelihood of the right digits, nats
  double smallest_margin =
      0;  // over all digits: logit of the right one - logit of the best other one

  void Add(const NeedleScore& other);
};

// Asks about every fact, each as if it were the only question: the cache is left as it was.
absl::StatusOr<NeedleScore> AskNeedles(LlamaRunner& runner, KvCache& cache,
                                       const std::vector<NeedleFact>& facts);

// Mean bits per byte of `text` behind what the cache holds, which is left as it was.
absl::StatusOr<double> BitsPerByte(LlamaRunner& runner, KvCache& cache, const std::string& text);

// What a decode worker gets when a prefill worker has computed `dense`: the same tokens, compact.
// `layout` and `options` as for CompactKvCache::Create.
absl::StatusOr<std::unique_ptr<CompactKvCache>> Compacted(
    const FillableKvCache& dense, std::shared_ptr<const ProfileLayout> layout,
    ComputeBackend* backend, const CompactCacheOptions& options);

}  // namespace fourierkv
