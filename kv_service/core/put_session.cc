#include "kv_service/core/put_session.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/base/content_hash.h"
#include "kv_service/core/kill_point.h"
#include "kv_service/core/part_collector.h"
#include "kv_service/core/put_size.h"
#include "kv_service/core/tenant_salt.h"
#include "kv_service/core/tiered_store.h"

namespace fourierkv {
namespace {

// What a put's pin must cover: everything of its plan that is stored, and the parent.
std::vector<BlockKey> PlanKeys(const PutPlan& plan, const std::vector<PlannedSegment>& segments) {
  std::vector<BlockKey> keys;
  if (plan.parent.has_value()) keys.push_back(*plan.parent);
  for (const PlannedSegment& segment : segments) keys.push_back(segment.key);
  return keys;
}

absl::Status CheckParent(const SegmentStore& store, const PutPlan& plan) {
  if (!plan.parent.has_value()) return absl::OkStatus();
  const auto fault = [&](auto... why) {
    return absl::FailedPreconditionError(
        absl::StrCat("put: parent_key ", plan.parent->ToHex(), why...));
  };
  const auto parent = store.Describe(*plan.parent);
  // Another tenant's segment looks like one that is not there.
  if (!parent.ok() || parent->context->root != plan.context->root) {
    return fault(" is not stored in this namespace; put what comes before first");
  }
  if (parent->tail) return fault(" is a tail, which nothing can follow");
  if (parent->index + 1 != plan.first_segment_index) {
    return fault(" is segment ", parent->index, ", so first_segment_index must be ",
                 parent->index + 1, ", not ", plan.first_segment_index);
  }
  return absl::OkStatus();
}

// Exact data in either form is as good as the compact form, which is made from it on demand.
// `below` is what a tier holds.
bool IsNeeded(const PlannedSegment& planned, const std::optional<StoredSegment>& stored,
              const std::optional<TierSegment>& below, SegmentForm compressed_form,
              float error_bound) {
  const auto serves = [&](SegmentForm form, float bound) {
    if (stored.has_value() && stored->forms[form] != nullptr) {
      return stored->forms[form]->max_relative_error() <= bound;
    }
    // Without a place in memory it would be deduplicated against nothing.
    return stored.has_value() && below.has_value() && below->forms[form].bytes > 0 &&
           below->forms[form].max_relative_error <= bound;
  };
  if (serves(SegmentForm::kExact, kNoErrorBound) || serves(SegmentForm::kLossless, kNoErrorBound)) {
    return false;
  }
  if (planned.keep_exact) return true;
  return !serves(SegmentForm::kCompact, error_bound) &&  // does for ARCHIVED too
         !serves(compressed_form, error_bound);
}

}  // namespace

PutManager::PutManager(SegmentStore* store, ComputeBackend* backend, int max_sessions,
                       TieredStore* tiers)
    : store_(store),
      backend_(backend),
      tiers_(tiers),
      max_sessions_(max_sessions),
      running_(std::make_shared<std::atomic<int>>(0)) {}

absl::StatusOr<std::unique_ptr<PutSession>> PutManager::Begin(PutPlan plan,
                                                              const Patience& tier_patience,
                                                              const Patience& patience) {
  if (auto s = CheckPutPlan(plan); !s.ok()) return s;
  // Counted before anything is held, and given back by the session's destructor.
  auto session = std::unique_ptr<PutSession>(new PutSession(store_, tiers_, running_));
  if (running_->load() > max_sessions_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("put: ", max_sessions_, " puts are running, which is the most; retry later"));
  }
  std::vector<PlannedSegment> segments = PlanSegments(plan);
  const std::vector<BlockKey> keys = PlanKeys(plan, segments);
  const auto plan_keys = std::span(keys).last(segments.size());
  std::vector<std::optional<TierSegment>> below(segments.size());
  if (tiers_ != nullptr) below = tiers_->Prepare(plan.parent, plan_keys, tier_patience);
  session->pin_ = store_->Pin(keys);
  if (auto s = CheckParent(*store_, plan); !s.ok()) return s;
  const auto stored = store_->Get(plan_keys);
  int64_t known_bytes = 0;
  bool any_needed = false;
  for (size_t i = 0; i < segments.size(); ++i) {
    segments[i].needed =
        IsNeeded(segments[i], stored[i], below[i], plan.compressed_form, plan.max_relative_error);
    if (segments[i].needed) known_bytes += KnownBytes(plan, segments[i], stored[i]);
    any_needed = any_needed || segments[i].needed;
  }
  if (any_needed) {
    // Before any payload comes: it would come in vain. What is not known yet has one byte at least.
    auto pledge = store_->Pledge(TenantOf(plan.context->ns), std::max<int64_t>(1, known_bytes),
                                 plan.tenant_limit_bytes);
    if (!pledge.ok()) return pledge.status();
    session->pledge_ = *std::move(pledge);
  }
  session->Start(std::move(plan), std::move(segments), *backend_, patience);
  return session;
}

PutSession::PutSession(SegmentStore* store, TieredStore* tiers,
                       std::shared_ptr<std::atomic<int>> running)
    : store_(store), tiers_(tiers), running_(std::move(running)) {
  running_->fetch_add(1);
}

PutSession::~PutSession() {
  if (collector_ != nullptr && !committed_) {
    StoreMetrics::Add(store_->metrics().puts_aborted, 1);
  }
  running_->fetch_sub(1);
}

void PutSession::Start(PutPlan plan, std::vector<PlannedSegment> segments, ComputeBackend& backend,
                       const Patience& patience) {
  segments_ = std::move(segments);
  durability_ = plan.durability;
  tenant_limit_bytes_ = plan.tenant_limit_bytes;
  ttl_ = plan.ttl;
  patience_ = patience;
  layers_ = plan.context->ns.geometry.layers;
  collector_ = std::make_unique<PartCollector>(plan, segments_, store_->budget(), backend,
                                               store_->metrics(), patience);
  StoreMetrics::Add(store_->metrics().puts_begun, 1);
}

int64_t PutSession::needed_segments() const {
  int64_t needed = 0;
  for (const PlannedSegment& segment : segments_) needed += segment.needed ? 1 : 0;
  return needed;
}

int64_t PutSession::PartBytes(const PlannedSegment& segment, int layer, Part part) const {
  return collector_->PartBytes(static_cast<size_t>(segment.index - segments_.front().index), layer,
                               part);
}

absl::Status PutSession::AddChunk(int64_t segment_index, int layer, Part part, int64_t offset,
                                  std::span<const std::byte> bytes, uint64_t checksum,
                                  int64_t part_bytes) {
  if (!ended_.ok()) return ended_;
  const int64_t first = segments_.front().index;
  const int64_t last = segments_.back().index;
  if (segment_index < first || segment_index > last) {
    return absl::InvalidArgumentError(absl::StrCat("chunk: segment_index is ", segment_index,
                                                   "; this put has ", first, " to ", last));
  }
  const size_t slot = static_cast<size_t>(segment_index - first);
  if (!segments_[slot].needed) {
    return absl::InvalidArgumentError(absl::StrCat("chunk: segment ", segment_index,
                                                   " is stored already; send only what is needed"));
  }
  if (layer < 0 || layer >= layers_) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk: layer is ", layer, "; it must be from 0 to ", layers_ - 1));
  }
  if (part != Part::kK && part != Part::kV) {
    return absl::InvalidArgumentError("chunk: part must be K or V");
  }
  const auto where = [&] {
    return absl::StrCat("segment ", segment_index, " layer ", layer, " ", PartName(part),
                        " offset ", offset);
  };
  if (bytes.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(where(), ": the chunk has no data"));
  }
  if (offset < 0) return absl::OutOfRangeError(absl::StrCat(where(), ": is negative"));
  if (Checksum(bytes) != checksum) {
    StoreMetrics::Add(store_->metrics().chunk_checksum_errors, 1);
    return absl::DataLossError(
        absl::StrCat(where(), ": checksum does not match the ", bytes.size(),
                     " bytes that came; they were damaged on the way: send them again"));
  }
  bool fatal = false;
  absl::Status status = collector_->Add(slot, layer, part, part_bytes, offset, bytes, &fatal);
  return fatal ? End(std::move(status)) : status;
}

absl::StatusOr<PutStats> PutSession::Commit(const Patience& tier_patience) {
  if (!ended_.ok()) return ended_;
  KillPoint("put.before_commit");
  // First what waits for the encoder: values that it refuses are at fault whatever else is missing.
  if (auto s = collector_->Flush(); !s.ok()) return End(std::move(s));
  if (auto s = collector_->CheckComplete(); !s.ok()) return s;
  if (auto s = patience_.Check(); !s.ok()) return End(std::move(s));
  PutStats stats;
  std::vector<StoredSegment> batch;
  batch.reserve(segments_.size());
  for (size_t slot = 0; slot < segments_.size(); ++slot) {
    batch.push_back(collector_->Take(slot));
    const auto bytes = [&](SegmentForm form) {
      const FormPtr& held = batch.back().forms[form];
      return held != nullptr ? held->bytes() : 0;
    };
    stats.exact_bytes += bytes(SegmentForm::kExact);
    stats.lossless_bytes += bytes(SegmentForm::kLossless);
    stats.compact_bytes += bytes(SegmentForm::kCompact);
    stats.archived_bytes += bytes(SegmentForm::kArchived);
  }
  const auto result = store_->Commit(std::move(batch), tenant_limit_bytes_, store_->Now() + ttl_);
  if (!result.ok()) return End(result.status());
  pledge_.Release();  // counted as stored from now on
  KillPoint("put.in_memory");
  if (tiers_ != nullptr) {
    std::vector<BlockKey> keys;
    for (const PlannedSegment& segment : segments_) keys.push_back(segment.key);
    stats.durability = tiers_->Keep(keys, durability_, tier_patience);
  }
  KillPoint("put.kept");
  stats.segments_stored = result->stored;
  stats.segments_deduplicated = result->deduplicated;
  stats.bytes_received = collector_->totals().bytes_received;
  stats.encoded_dense_bytes = collector_->totals().encoded_dense_bytes;
  stats.encode_seconds = collector_->totals().encode_seconds;
  stats.bounded_segments = collector_->totals().bounded_segments;
  stats.max_relative_error = collector_->totals().max_relative_error;
  committed_ = true;
  StoreMetrics::Add(store_->metrics().puts_committed, 1);
  End(absl::FailedPreconditionError("put: it was committed; begin another one")).IgnoreError();
  return stats;
}

absl::Status PutSession::End(absl::Status why) {
  ended_ = std::move(why);
  collector_->Clear();
  pin_.Release();
  pledge_.Release();
  return ended_;
}

}  // namespace fourierkv
