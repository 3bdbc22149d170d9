// What can be measured: ways of holding the same tokens in a cache.

#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "compute/base/thread_pool.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/cache/kv_cache.h"
#include "compute/codec/segment_layout.h"
#include "compute/codec/sequence_layout.h"

namespace fourierkv {

// What a cache takes; `dense` is what the same tokens take as bf16.
struct FormBytes {
  int64_t compact_payload = 0;  // of the compressed part
  int64_t compact_headers = 0;
  int64_t compact_dense = 0;
  int64_t whole = 0;  // the compressed part with headers, sink, recent window
  int64_t whole_dense = 0;

  // How many times smaller; 1 where nothing is compressed.
  double payload_ratio() const { return Ratio(compact_dense, compact_payload); }
  double compact_ratio() const { return Ratio(compact_dense, compact_payload + compact_headers); }
  double whole_ratio() const { return Ratio(whole_dense, whole); }
  // Payload bits per element of the compressed part; 16 where nothing is compressed.
  double bits_per_element() const { return 16 / payload_ratio(); }

 private:
  static double Ratio(int64_t dense, int64_t held) {
    return held == 0 ? 1 : static_cast<double>(dense) / static_cast<double>(held);
  }
};

struct FormedCache {
  std::unique_ptr<KvCache> cache;  // its chunks can be abandoned before Advance
  FormBytes bytes;
};

// Immutable and thread safe.
class CacheForm {
 public:
  explicit CacheForm(std::string name) : name_(std::move(name)) {}
  virtual ~CacheForm() = default;

  const std::string& name() const { return name_; }

  // A cache of the tokens that `dense` holds, as it would be had they arrived one by one, with
  // room for `max_tokens` in all. InvalidArgument for a model that the form was not made for.
  virtual absl::StatusOr<FormedCache> Make(const DenseKvCache& dense, int64_t max_tokens) const = 0;

  // How many tokens a cache of `length` can take as one chunk so that each sees what it would see
  // if they came one by one: up to the one behind which older tokens are compressed. At least 1.
  virtual int64_t ChunkTokens(int64_t /*length*/) const { return 256; }

 private:
  const std::string name_;
};

// A copy of the dense cache. `backend` must outlive the form's caches, here and below.
std::unique_ptr<CacheForm> MakeDenseForm(ComputeBackend* backend);

// CompactKvCache with a recent window of W tokens.
std::unique_ptr<CacheForm> MakeCompactForm(std::string name,
                                           std::shared_ptr<const ProfileLayout> layout,
                                           int64_t recent_window, ComputeBackend* backend);

// SequenceKvCache: the published form, whose scope says what is exact. Bytes are as stored. Tokens
// come in small chunks instead of one by one, so that a few more than published are exact.
std::unique_ptr<CacheForm> MakeSequenceForm(std::string name,
                                            std::shared_ptr<const SequenceLayout> layout,
                                            std::shared_ptr<ThreadPool> pool,
                                            ComputeBackend* backend);

}  // namespace fourierkv
