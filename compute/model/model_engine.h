// What runs a model for workers: sequences, their caches, and the passes over them.

#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "compute/base/geometry.h"
#include "compute/cache/fill_target.h"
#include "compute/cache/kv_cache.h"
#include "compute/cache/sealed_segment.h"
#include "compute/model/sampler.h"

namespace fourierkv {

// Of the K and V in the caches of every engine.
inline constexpr KvDtype kEngineKvDtype = KvDtype::kBf16;

// Of a prompt, so many tokens (or one segment, if that is longer) are computed at once. What is due
// is encoded between them.
inline constexpr int kPromptChunkTokens = 512;

struct SequenceOptions {
  bool compact = true;           // false: everything stays exact
  int64_t recent_window = 1024;  // W: at least so many of the last tokens stay exact; 0 to 2^20
  int64_t max_tokens = 0;        // 1 to kMaxCacheTokens
  // Segments in which any part of any layer has a larger measured error stay exact.
  float max_relative_error = std::numeric_limits<float>::infinity();
};

// K or V of `layer` of `tokens` tokens from position `first`, which are one segment or its first
// tokens: [kv_heads][tokens][head_dim] in kEngineKvDtype.
struct ComputedPart {
  int layer = 0;
  int64_t first = 0;
  int64_t tokens = 0;
  Part part = Part::kK;
  std::vector<uint16_t> values;
};

struct PromptOptions {
  // Asked every now and then. A failure stops the pass and is returned.
  std::function<absl::Status()> wanted = nullptr;
  // Gets everything that was computed, in order of layers within a chunk, while the pass goes on
  // where the engine can do that. A failure stops the pass and is returned. Needs a length() that
  // is a multiple of the segments' tokens.
  std::function<absl::Status(ComputedPart part)> on_part = nullptr;
};

// One sequence: its KV cache, and what the engine computes over it. One thread, but for
// fill_target(), whose header says what other threads may do.
//
// After a failure of Prefill or Step, length() says how far they came; a sequence whose fill has
// failed is of no more use.
class ModelSequence {
 public:
  virtual ~ModelSequence() = default;

  // Tokens whose KV is complete, i.e. the position of the next token.
  virtual int64_t length() const = 0;
  virtual CacheStats stats() const = 0;

  // To fill the cache instead of computing it; null if it is compressed as a whole.
  virtual FillTarget* fill_target() = 0;

  // Computes `tokens` at positions length() and following. `logits`, if not null, gets those of the
  // last one: [vocab]. A sequence that is being filled waits for that.
  //
  // InvalidArgument for no tokens, or ids outside the vocabulary; OutOfRange beyond the model's
  // max_position_embeddings; ResourceExhausted beyond max_tokens; otherwise what the fill, the
  // backend or a callback returned.
  virtual absl::Status Prefill(std::span<const int32_t> tokens, std::vector<float>* logits,
                               const PromptOptions& options = {}) = 0;

  // Computes one token and chooses the next. Errors are those of Prefill and of Sampler::Next.
  virtual absl::StatusOr<SampledToken> Step(int32_t token, Sampler& sampler) = 0;

  // K and V of positions [first, first + tokens), in order of layers, a segment or the first tokens
  // of one at a time; `first` is where a segment begins. InvalidArgument for tokens that are not
  // held exactly, of which a sequence that is compressed as a whole hands out none; otherwise what
  // the callback returned.
  virtual absl::Status ReadExact(
      int64_t first, int64_t tokens,
      const std::function<absl::Status(ComputedPart part)>& on_part) const = 0;

  // The segments encoded since the last call, oldest first, as far as they can be stored.
  virtual absl::StatusOr<std::vector<SealedSegment>> TakeSealed() = 0;
};

// Thread safe: each sequence may be used by a thread of its own. Outlives its sequences.
class ModelEngine {
 public:
  virtual ~ModelEngine() = default;

  virtual const char* name() const = 0;

  // Whether encoding costs less than bringing what was computed to where it would be encoded.
  virtual bool encodes_cheaply() const = 0;

  // What the values of the weights are, as they are computed with.
  virtual const char* weight_dtype() const = 0;

  // InvalidArgument, naming the option, for options out of bounds; ResourceExhausted if there is no
  // room for the sequence, now or at all.
  virtual absl::StatusOr<std::unique_ptr<ModelSequence>> NewSequence(
      const SequenceOptions& options) = 0;
};

}  // namespace fourierkv
