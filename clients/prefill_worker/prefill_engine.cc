#include "clients/prefill_worker/prefill_engine.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "clients/prefill_worker/segment_uploader.h"
#include "clients/prefill_worker/sequence_prefill.h"
#include "clients/worker/prefix_fetch.h"
#include "clients/worker/prefix_plan.h"
#include "compute/base/structured_log.h"
#include "compute/cache/compact_kv_cache.h"
#include "compute/model/model_engine.h"
#include "proto/support/convert.h"

namespace fourierkv {
namespace {

constexpr absl::Duration kLease = absl::Minutes(5);

// One prefill.
class PrefillRun {
 public:
  PrefillRun(const WorkerRuntime& runtime, const PrefillTask& task)
      : runtime_(runtime),
        task_(task),
        segment_tokens_(runtime.segment_tokens()),
        chunk_tokens_(std::max(kPromptChunkTokens, segment_tokens_)),
        total_(static_cast<int64_t>(task.tokens.size())),
        encode_here_(task.encode_here && task.mode == v1::CACHE_MODE_COMPACT &&
                     task.compressed_form == v1::SEGMENT_FORM_COMPACT &&
                     std::isinf(task.max_relative_error)) {}

  absl::StatusOr<v1::PrefillResult> Run() {
    const absl::Time begun = absl::Now();
    *result_.mutable_namespace_() = runtime_.ns(task_.mode);
    result_.set_tokens(total_);
    absl::StatusOr<v1::MatchPrefixResponse> match = Match();
    if (!match.ok()) return match.status();
    const absl::Status status = Complete(*match);
    if (match->lease_id() != 0) {
      runtime_.kv().Release(match->lease_id(), absl::Now() + absl::Seconds(5)).IgnoreError();
    }
    if (!status.ok()) return status;
    *result_.mutable_total_time() = ToProto(absl::Now() - begun);
    return std::move(result_);
  }

 private:
  // The service may have been restarted since the worker put it.
  absl::Status PutProfile() const {
    return task_.mode == v1::CACHE_MODE_COMPACT ? runtime_.PutProfile() : absl::OkStatus();
  }

  absl::StatusOr<v1::MatchPrefixResponse> Match() {
    if (absl::Status s = PutProfile(); !s.ok()) return s;
    v1::MatchPrefixRequest request;
    *request.mutable_namespace_() = runtime_.ns(task_.mode);
    request.mutable_token_ids()->Assign(task_.tokens.begin(), task_.tokens.end());
    *request.mutable_lease_ttl() = ToProto(kLease);
    return runtime_.kv().MatchPrefix(request, task_.deadline);
  }

  // Full segments from here on are wanted exact by a decoder that starts at the prompt's end.
  int64_t KeepExactFrom() const {
    if (task_.mode == v1::CACHE_MODE_EXACT) return 0;
    return CompactKvCache::CompactSegments(total_, segment_tokens_, task_.recent_window) + 1;
  }

  // How many leading segments are stored in the forms that this prompt needs.
  int64_t StoredSegments(const v1::MatchPrefixResponse& match) const {
    int64_t stored = 0;
    for (const v1::MatchedSegment& segment : match.segments()) {
      const bool tail = segment.tokens() < segment_tokens_;
      const bool wants_exact = stored == 0 || tail || stored >= KeepExactFrom() ||
                               !HoldsCompact(segment, task_.max_relative_error);
      if (wants_exact && !HoldsExactly(segment)) break;
      ++stored;
    }
    return stored;
  }

  absl::Status Complete(v1::MatchPrefixResponse& match) {
    const int64_t stored = StoredSegments(match);
    const int64_t all = (total_ + segment_tokens_ - 1) / segment_tokens_;
    if (stored == all) {
      result_.set_reused_tokens(total_);
      result_.set_deduplicated_segments(static_cast<uint32_t>(all));
      Progress(total_);
      return absl::OkStatus();
    }
    match.mutable_segments()->DeleteSubrange(static_cast<int>(stored),
                                             match.segments_size() - static_cast<int>(stored));
    absl::Status status = Compute(match);
    if (absl::IsNotFound(status) || absl::IsDataLoss(status) ||
        absl::IsFailedPrecondition(status)) {
      // The service has lost a segment that matched, or the profile: compute everything instead.
      Log(LogLevel::kWarning, "prefill.restart", {{"status", status}});
      if (absl::Status s = PutProfile(); !s.ok()) return s;
      status = Compute(v1::MatchPrefixResponse());
    }
    return status;
  }

  absl::Status Compute(const v1::MatchPrefixResponse& match) {
    absl::StatusOr<std::unique_ptr<ModelSequence>> sequence =
        runtime_.engine().NewSequence({.compact = task_.mode == v1::CACHE_MODE_COMPACT,
                                       .recent_window = task_.recent_window,
                                       .max_tokens = total_,
                                       .max_relative_error = task_.max_relative_error});
    if (!sequence.ok()) return sequence.status();
    PrefixPolicy policy;
    policy.mode = task_.mode;
    policy.segment_tokens = segment_tokens_;
    policy.recent_window = task_.recent_window;
    policy.max_relative_error = task_.max_relative_error;
    policy.sequence_tokens = match.segments_size() * static_cast<int64_t>(segment_tokens_);
    policy.max_reused = policy.sequence_tokens;
    PrefixPlan plan = PlanPrefix(match, policy);
    const int64_t base = plan.fill.length;
    std::unique_ptr<PrefixFetch> fetch;
    if (!plan.empty()) {
      absl::StatusOr<std::unique_ptr<PrefixFetch>> started = PrefixFetch::Start(
          &runtime_.kv(), std::move(plan), (*sequence)->fill_target(), task_.deadline);
      if (!started.ok()) return started.status();
      fetch = *std::move(started);
    }
    SegmentUploader uploader(&runtime_.kv(), task_.deadline);
    stored_ = base / segment_tokens_;
    parent_.clear();
    if (stored_ > 0) parent_ = match.segments(static_cast<int>(stored_) - 1).block_key();
    for (int64_t first = base; first < total_; first += chunk_tokens_) {
      const int64_t n = std::min<int64_t>(chunk_tokens_, total_ - first);
      absl::Status s = encode_here_ ? ComputeAndEncode(first, n, **sequence, uploader)
                                    : ComputeAndSend(first, n, **sequence, uploader);
      if (!s.ok()) return s;
      Progress(first + n);
    }
    if (fetch != nullptr) {
      if (absl::Status s = fetch->Wait(); !s.ok()) return s;
    }
    result_.set_payload_bytes_fetched(fetch == nullptr ? 0 : fetch->payload_bytes());
    absl::StatusOr<UploadTotals> totals = uploader.Finish();
    if (!totals.ok()) return totals.status();
    result_.set_reused_tokens(base);
    result_.set_computed_tokens(total_ - base);
    result_.set_deduplicated_segments(static_cast<uint32_t>(base / segment_tokens_));
    SetTotals(*totals, result_);
    return absl::OkStatus();
  }

  // Of a put of the segments that begin at tokens [first, first + n).
  absl::Status BeginPut(int64_t first, int64_t n, v1::SegmentForm form, SegmentUploader& uploader) {
    v1::PutHeader header;
    *header.mutable_namespace_() = runtime_.ns(task_.mode);
    header.set_parent_key(parent_);  // of the first put, which continues what has matched
    header.set_first_segment_index(first / segment_tokens_);
    const std::span<const int32_t> tokens = Tokens(first, n);
    header.mutable_token_ids()->Assign(tokens.begin(), tokens.end());
    header.set_payload_form(form);
    if (form == v1::SEGMENT_FORM_EXACT) {
      header.set_keep_exact_from(KeepExactFrom());
      header.set_exact_form(task_.exact_form);
      header.set_compressed_form(task_.compressed_form);
      if (!std::isinf(task_.max_relative_error)) {
        header.set_max_relative_error(task_.max_relative_error);
      }
    }
    return uploader.BeginPut(std::move(header));
  }

  std::span<const int32_t> Tokens(int64_t first, int64_t n) const {
    return std::span(task_.tokens).subspan(first, n);
  }

  PromptOptions Options() const {
    PromptOptions options;
    options.wanted = [this] {
      return task_.cancelled && task_.cancelled() ? absl::CancelledError("the caller is gone")
                                                  : absl::OkStatus();
    };
    return options;
  }

  std::function<absl::Status(ComputedPart)> Sender(SegmentUploader& uploader) const {
    return [this, &uploader](ComputedPart part) {
      return uploader.SendPart(part.first / segment_tokens_, part.layer, part.part,
                               std::move(part.values));
    };
  }

  // Each layer is sent while the next is computed.
  absl::Status ComputeAndSend(int64_t first, int64_t n, ModelSequence& sequence,
                              SegmentUploader& uploader) {
    absl::Status s = BeginPut(first, n, v1::SEGMENT_FORM_EXACT, uploader);
    if (!s.ok()) return s;
    PromptOptions options = Options();
    options.on_part = Sender(uploader);
    if (s = sequence.Prefill(Tokens(first, n), nullptr, options); !s.ok()) return s;
    return uploader.CommitPut();
  }

  // The first segment is sent exactly, what the sequence encodes compact, and at the end what is
  // left exactly.
  absl::Status ComputeAndEncode(int64_t first, int64_t n, ModelSequence& sequence,
                                SegmentUploader& uploader) {
    absl::Status s = sequence.Prefill(Tokens(first, n), nullptr, Options());
    if (s.ok() && stored_ == 0) {
      s = SendExact(std::min<int64_t>(segment_tokens_, total_), sequence, uploader);
    }
    if (s.ok()) s = SendSealed(sequence, uploader);
    while (s.ok() && first + n == total_ && stored_ * segment_tokens_ < total_) {
      s = SendExact(std::min(total_, stored_ * segment_tokens_ + chunk_tokens_), sequence,
                    uploader);
    }
    return s;
  }

  // From what is stored to token `end`, which ends a segment or the prompt.
  absl::Status SendExact(int64_t end, ModelSequence& sequence, SegmentUploader& uploader) {
    const int64_t first = stored_ * segment_tokens_;
    absl::Status s = BeginPut(first, end - first, v1::SEGMENT_FORM_EXACT, uploader);
    if (s.ok()) s = sequence.ReadExact(first, end - first, Sender(uploader));
    if (s.ok()) s = uploader.CommitPut();
    stored_ = (end + segment_tokens_ - 1) / segment_tokens_;
    return s;
  }

  absl::Status SendSealed(ModelSequence& sequence, SegmentUploader& uploader) {
    absl::StatusOr<std::vector<SealedSegment>> sealed = sequence.TakeSealed();
    if (!sealed.ok()) return sealed.status();
    // What was fetched exactly and has become compact here is stored already.
    std::erase_if(*sealed, [this](const SealedSegment& s) { return s.index < stored_; });
    if (sealed->empty()) return absl::OkStatus();
    const auto n = static_cast<int64_t>(sealed->size());
    absl::Status s = BeginPut(stored_ * segment_tokens_, n * segment_tokens_,
                              v1::SEGMENT_FORM_COMPACT, uploader);
    for (SealedSegment& segment : *sealed) {
      if (s.ok()) s = uploader.SendSealed(std::move(segment), runtime_.layout());
    }
    stored_ += n;
    return s.ok() ? uploader.CommitPut() : s;
  }

  void Progress(int64_t done) const {
    if (task_.on_progress) task_.on_progress(done, total_);
  }

  const WorkerRuntime& runtime_;
  const PrefillTask& task_;
  const int segment_tokens_;
  const int chunk_tokens_;
  const int64_t total_;
  const bool encode_here_;
  // Of the computation under way: segments that are stored or on their way, and the key of the last
  // of those that were stored when it began.
  int64_t stored_ = 0;
  std::string parent_;
  v1::PrefillResult result_;
};

}  // namespace

absl::StatusOr<v1::PrefillResult> RunPrefill(const WorkerRuntime& runtime,
                                             const PrefillTask& task) {
  if (absl::Status s = CheckErrorBound(runtime, task.mode, task.max_relative_error); !s.ok()) {
    return s;
  }
  if (runtime.sequence(task.mode)) return RunSequencePrefill(runtime, task);
  return PrefillRun(runtime, task).Run();
}

}  // namespace fourierkv
