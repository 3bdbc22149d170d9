// What one put is about, and which of it must be sent.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kv_service/core/block_key.h"
#include "kv_service/core/cache_namespace.h"
#include "kv_service/core/segment_tier.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

inline constexpr int64_t kMaxPutSegments = 4096;
inline constexpr int64_t kMaxSegmentIndex = int64_t{1} << 20;

enum class PutPayload : uint8_t {
  kDense = 1,     // K and V as [kv_heads][tokens][head_dim] in the namespace's dtype
  kCompact = 2,   // whole compact blobs, headers included
  kLossless = 3,  // whole lossless blobs of what kDense has
};

struct PutPlan {
  std::shared_ptr<const NamespaceContext> context;
  std::optional<BlockKey> parent;  // nullopt iff first_segment_index = 0
  int64_t first_segment_index = 0;
  // From the start of the first segment. Not a multiple of S: the rest is the sequence's tail.
  std::vector<uint32_t> token_ids;
  PutPayload payload = PutPayload::kDense;
  // Full segments from this index on keep their exact data beside the compressed form. Not with
  // compact payload.
  int64_t keep_exact_from = 0;
  SegmentForm exact_form = SegmentForm::kExact;  // or LOSSLESS: how exact data is kept
  // COMPACT, or ARCHIVED for segments that are not expected to be needed soon.
  SegmentForm compressed_form = SegmentForm::kCompact;
  // Exact data of segments whose compressed form has a larger error is kept too, wherever they are.
  float max_relative_error = kNoErrorBound;
  // With a profile of whole sequences: how many tokens this one may grow to. Else 0.
  int64_t sequence_capacity = 0;
  // What the commit waits for, where a tier offers it.
  Durability durability = Durability::kMemory;
  // Of the blobs that the namespace's tenant may have in memory, looked at when the put begins,
  // with what is known of its size, and when it is committed; 0: no limit.
  int64_t tenant_limit_bytes = 0;
  // How long the segments are kept from the commit on, in every tier, as are all before them; at
  // least that long if they are stored already.
  absl::Duration ttl = absl::InfiniteDuration();
};

struct PlannedSegment {
  BlockKey key;
  BlockKey parent;
  int64_t index = 0;
  int tokens = 0;
  bool tail = false;
  bool needed = false;        // its chunks must be sent
  bool keep_exact = false;    // forms that this put leaves behind, whatever the errors
  bool keep_compact = false;  // in the plan's compressed_form
};

// Which forms a put leaves behind: without a profile, segment 0 and tails are exact only; before
// `keep_exact_from` compact (or archived) only; both from there on. A whole sequence is segment 0,
// and compact all the same.
bool KeepsExact(const NamespaceContext& context, int64_t index, bool tail, int64_t keep_exact_from);
bool KeepsCompact(const NamespaceContext& context, int64_t index, bool tail);

// InvalidArgument naming the field, unless: context is set; 1 to kMaxPutSegments segments, none
// beyond kMaxSegmentIndex; a parent iff the first segment is not segment 0; exact_form EXACT or
// LOSSLESS; compressed_form COMPACT, or ARCHIVED with a profile that has an archive section;
// max_relative_error a number >= 0; and for compact payload a profile, compressed_form COMPACT, no
// such bound, no tail and no segment 0, which are exact only. With a profile of whole sequences:
// segment 0, 1 <= tokens <= sequence_capacity <= kMaxSequenceTokens, and no part of more than
// kMaxBlobBytes; without, no sequence_capacity.
absl::Status CheckPutPlan(const PutPlan& plan);

// The segments of a valid plan, with their keys; none needed yet.
std::vector<PlannedSegment> PlanSegments(const PutPlan& plan);

}  // namespace fourierkv
