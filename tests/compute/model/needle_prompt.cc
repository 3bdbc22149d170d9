#include "tests/compute/model/needle_prompt.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "compute/model/byte_tokenizer.h"
#include "compute/model/sampler.h"

namespace fourierkv {
namespace {

constexpr int kSlot = 128;
constexpr int kDigits = 7;

// Reads through to another cache; what is appended is forgotten.
class Glance final : public KvCache {
 public:
  explicit Glance(KvCache& cache) : cache_(cache) {}
  const KvGeometry& geometry() const override { return cache_.geometry(); }
  int64_t length() const override { return cache_.length(); }
  int64_t bytes() const override { return cache_.bytes(); }
  absl::Status Append(int layer, int n, const float* k, const float* v) override {
    return cache_.Append(layer, n, k, v);
  }
  absl::Status Attend(int layer, int n, int heads, const float* q, float* out) override {
    return cache_.Attend(layer, n, heads, q, out);
  }
  absl::Status Advance(int) override { return absl::OkStatus(); }

 private:
  KvCache& cache_;
};

double LogSumExp(std::span<const float> logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - max);
  return max + std::log(sum);
}

// Negative log-likelihood of `token` given the row of logits before it.
double Nll(std::span<const float> logits, int32_t token) {
  return LogSumExp(logits) - logits[token];
}

}  // namespace

NeedlePrompt MakeNeedlePrompt(const std::string& background, int length, int facts, int first,
                              int last, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  NeedlePrompt prompt;
  const size_t start = below(background.size());
  for (int i = 0; i < length; ++i) {
    const char c = background[(start + i) % background.size()];
    prompt.text.push_back(static_cast<unsigned char>(c) > 127 ? '?' : c);
  }
  std::vector<int> slots((last - first) / kSlot);
  std::iota(slots.begin(), slots.end(), 0);
  for (int i = 0; i < facts; ++i) {
    std::swap(slots[i], slots[i + below(slots.size() - i)]);
    NeedleFact fact;
    for (int letter = 0; letter < 4; ++letter) {
      fact.name.push_back("bcdfghjklmnprstvwz"[below(18)]);
      fact.name.push_back("aeiou"[below(5)]);
    }
    for (int digit = 0; digit < kDigits; ++digit) {
      fact.digits.push_back(static_cast<char>('0' + below(10)));
    }
    const std::string sentence = absl::StrCat("\nOne of the special magic numbers for ", fact.name,
                                              " is: ", fact.digits, ".\n");
    const size_t at = first + slots[i] * kSlot + below(kSlot - sentence.size());
    prompt.text.replace(at, sentence.size(), sentence);
    prompt.facts.push_back(fact);
  }
  return prompt;
}

std::string NeedleQuestion(const NeedleFact& fact) {
  return absl::StrCat("\nThe special magic number for ", fact.name, " mentioned in the text is: ");
}

void NeedleScore::Add(const NeedleScore& other) {
  const int all = questions + other.questions;
  if (all == 0) return;
  digit_nll = (digit_nll * questions + other.digit_nll * other.questions) / all;
  smallest_margin = questions == 0         ? other.smallest_margin
                    : other.questions == 0 ? smallest_margin
                                           : std::min(smallest_margin, other.smallest_margin);
  questions = all;
  exact += other.exact;
  digits += other.digits;
}

// One pass per question with its answer behind it: greedy decoding gives the answer exactly if
// every digit is the likeliest token behind the question and the right digits before it.
absl::StatusOr<NeedleScore> AskNeedles(LlamaRunner& runner, KvCache& cache,
                                       const std::vector<NeedleFact>& facts) {
  Glance glance(cache);
  const size_t vocab = runner.model().config().vocab_size;
  ForwardOptions options;
  options.logits = Logits::kAll;
  ForwardOutput out;
  NeedleScore score;
  for (const NeedleFact& fact : facts) {
    const std::vector<int32_t> tokens = EncodeBytes(NeedleQuestion(fact) + fact.digits);
    if (absl::Status s = runner.Forward(tokens, glance, &out, options); !s.ok()) return s;
    NeedleScore one{.questions = 1, .smallest_margin = std::numeric_limits<double>::infinity()};
    for (size_t i = tokens.size() - kDigits; i < tokens.size(); ++i) {
      std::vector<float> row(out.logits.begin() + (i - 1) * vocab, out.logits.begin() + i * vocab);
      one.digit_nll += Nll(row, tokens[i]) / kDigits;
      const float right = std::exchange(row[tokens[i]], -std::numeric_limits<float>::infinity());
      const double margin = right - *std::max_element(row.begin(), row.end());
      one.smallest_margin = std::min(one.smallest_margin, margin);
      one.digits += margin > 0;
    }
    one.exact = one.digits == kDigits;
    score.Add(one);
  }
  return score;
}

absl::StatusOr<double> BitsPerByte(LlamaRunner& runner, KvCache& cache, const std::string& text) {
  Glance glance(cache);
  const size_t vocab = runner.model().config().vocab_size;
  ForwardOptions options;
  options.logits = Logits::kAll;
  ForwardOutput out;
  const std::vector<int32_t> tokens = EncodeBytes(text);
  if (absl::Status s = runner.Forward(tokens, glance, &out, options); !s.ok()) return s;
  double nll = 0;
  for (size_t i = 1; i < tokens.size(); ++i) {
    nll += Nll(std::span(out.logits).subspan((i - 1) * vocab, vocab), tokens[i]);
  }
  return nll / std::log(2.0) / static_cast<double>(tokens.size() - 1);
}

absl::StatusOr<std::unique_ptr<CompactKvCache>> Compacted(
    const FillableKvCache& dense, std::shared_ptr<const ProfileLayout> layout,
    ComputeBackend* backend, const CompactCacheOptions& options) {
  auto cache = CompactKvCache::Create(std::move(layout), backend, options);
  if (!cache.ok()) return cache.status();
  const KvGeometry& g = dense.geometry();
  const int64_t n = dense.length(), head_size = n * g.head_dim;
  if (absl::Status s = (*cache)->BeginFill({.length = n}, absl::InfiniteFuture()); !s.ok())
    return s;
  std::vector<uint16_t> k, v;
  for (int layer = 0; layer < g.layers; ++layer) {
    const ExactBlock exact = dense.exact_block(layer);
    k.clear();
    v.clear();
    for (int head = 0; head < g.kv_heads; ++head) {
      const int64_t at = head * exact.head_stride;
      k.insert(k.end(), exact.k + at, exact.k + at + head_size);
      v.insert(v.end(), exact.v + at, exact.v + at + head_size);
    }
    absl::Status s = (*cache)->InstallExact(layer, 0, n, k.data(), v.data());
    if (s.ok()) s = (*cache)->MarkLayerReady(layer);
    if (!s.ok()) return s;
  }
  if (absl::Status s = (*cache)->Compact(); !s.ok()) return s;
  return cache;
}

}  // namespace fourierkv
