// What a device must be able to do with KV caches. Implementations are siblings of this file.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compute/base/geometry.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv {

class ThreadPool;

// K or V of one layer of one full segment, all KV heads.
struct EncodeJob {
  const PartLayout* layout = nullptr;
  const uint16_t* dense = nullptr;  // head h at dense + h * head_stride: [S][head_dim], contiguous
  int64_t head_stride = 0;          // in elements; S * head_dim when heads are adjacent
  std::byte* payload = nullptr;     // layout->payload_bytes bytes, 4-byte aligned at least
  float relative_error = 0;         // result
};

struct DecodeJob {
  const PartLayout* layout = nullptr;
  const std::byte* payload = nullptr;  // 4-byte aligned at least
  uint16_t* dense = nullptr;           // as in EncodeJob
  int64_t head_stride = 0;
};

// Tokens held as received: K and V of one layer.
struct ExactBlock {
  const uint16_t* k = nullptr;  // head h at k + h * head_stride: [tokens][head_dim], contiguous
  const uint16_t* v = nullptr;
  int64_t tokens = 0;
  int64_t head_stride = 0;  // in elements
  // A name for what stands at k and v, so that devices can keep copies: blocks of the same version,
  // k, v and head_stride have the same values in the tokens that both have, whenever they are used.
  // From NextUniqueId(); 0: no name, nothing is kept.
  uint64_t version = 0;
};

// Payloads of K and V of one layer of one compact segment.
struct CompactBlock {
  const std::byte* k = nullptr;  // 4-byte aligned at least
  const std::byte* v = nullptr;
  uint64_t version = 0;  // as ExactBlock's: of the same layouts, k and v
};

// One layer of one sequence's cache. Order of blocks does not matter, except that causal masking is
// over the last tokens of the last exact block.
struct LayerKv {
  int kv_heads = 0;
  int head_dim = 0;
  KvDtype dtype = KvDtype::kBf16;
  const PartLayout* k_layout = nullptr;  // required when there are compact blocks
  const PartLayout* v_layout = nullptr;
  std::span<const CompactBlock> compact;
  std::span<const ExactBlock> exact;
};

// out[i][h] = softmax(scale * q[i][h] . K) V over the whole cache; grouped-query attention: query
// head h reads KV head h / (query_heads / kv_heads).
struct AttentionArgs {
  LayerKv kv;
  int query_heads = 0;
  // With query_tokens = n > 1, the last n tokens of the last exact block are the queries' own:
  // query i does not see the last n - 1 - i of them.
  int query_tokens = 1;
  float scale = 0;           // 1 / sqrt(head_dim) usually
  const float* q = nullptr;  // [query_tokens][query_heads][head_dim]
  float* out = nullptr;      // [query_tokens][query_heads][head_dim]
  float* lse = nullptr;  // [query_tokens][query_heads], natural log of the softmax sum; may be null
};

// Thread safe. Calls share the backend's threads and take turns on them.
class ComputeBackend {
 public:
  virtual ~ComputeBackend() = default;

  virtual std::string name() const = 0;  // "cpu (AVX3_SPR, 2 threads)"

  // Encodes every job. InvalidArgument if any value is NaN, infinite or beyond +-1e30 (what was
  // written to that job's payload is then meaningless, and the message names layer-independent
  // facts: head, token and channel of the first such value). All jobs must share `dtype`.
  virtual absl::Status Encode(KvDtype dtype, std::span<EncodeJob> jobs) = 0;

  // Rounds to nearest even; overflow of fp16 gives the largest finite value.
  virtual absl::Status Decode(KvDtype dtype, std::span<const DecodeJob> jobs) = 0;

  // Exact softmax over what the cache holds, without decoding it when query_tokens = 1.
  // InvalidArgument for shapes that do not fit or an empty cache.
  virtual absl::Status Attend(const AttentionArgs& args) = 0;

  // Threads for work that is done on the host beside these calls, such as encoding whole sequences;
  // null: only the caller's own.
  virtual ThreadPool* host_threads() { return nullptr; }
};

// `threads` = 0: one per hardware thread.
std::unique_ptr<ComputeBackend> CreateCpuBackend(int threads = 0);

// Backends are linked in and register themselves by device name ("cpu", "cuda").
// NotFound, listing the names that are linked in.
absl::StatusOr<std::unique_ptr<ComputeBackend>> CreateBackend(absl::string_view device,
                                                              int threads);

}  // namespace fourierkv
