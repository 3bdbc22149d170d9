// Why a prompt, or part of it, is not found: for people who wonder.

#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kv_service/core/removal_history.h"
#include "kv_service/core/segment_store.h"

namespace fourierkv {

// What became of one segment of a prompt.
struct SegmentFate {
  BlockKey key;
  int64_t index = 0;
  int tokens = 0;
  std::optional<SegmentSummary> held;              // set if it is stored
  std::optional<RemovalHistory::Removal> removal;  // set if it was, as far as is known
};

// One field by which two namespaces differ, named as in v1::CacheNamespace.
struct FieldDifference {
  std::string field;
  std::string asked;
  std::string held;  // both empty for tenant_salt, which is nobody's to know
};

// A namespace that holds the prompt's first segment.
struct NearNamespace {
  Digest root;
  std::vector<FieldDifference> differences;
  int64_t matched_segments = 0;
};

struct MissReport {
  std::vector<SegmentFate> segments;     // of the prompt, in order, the tail last
  std::vector<NearNamespace> elsewhere;  // least different first
  absl::Time history_since;              // removals before may have been forgotten
};

// The fields by which `held` differs from `asked`.
std::vector<FieldDifference> Differences(const CacheNamespace& asked, const CacheNamespace& held);

// Says what is held of each key, nullopt where nothing is.
using HeldLookup =
    std::function<std::vector<std::optional<SegmentSummary>>(std::span<const BlockKey>)>;

// Looks for `tokens` in `ns`, which is valid, in `store` or, if that is given, with `lookup`, for
// tiers hold more than memory. Unless all of it is there, looks in every other namespace of
// `store`. `capacity` matters where whole sequences are stored. Touches nothing. InvalidArgument if
// `capacity` does not fit to `ns` and `tokens`.
absl::StatusOr<MissReport> ExplainMiss(const SegmentStore& store, const RemovalHistory& history,
                                       const CacheNamespace& ns, std::span<const uint32_t> tokens,
                                       int64_t capacity = 0, const HeldLookup& lookup = nullptr);

}  // namespace fourierkv
