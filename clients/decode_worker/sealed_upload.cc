#include "clients/decode_worker/sealed_upload.h"

#include <memory>

#include "proto/support/convert.h"

namespace fourierkv {
namespace {

// Key of the segment before `first`, or "" if the service does not hold it.
absl::StatusOr<std::string> ParentKey(const WorkerRuntime& runtime, int64_t first,
                                      std::span<const int32_t> tokens, absl::Time deadline) {
  v1::MatchPrefixRequest request;
  *request.mutable_namespace_() = runtime.ns(v1::CACHE_MODE_COMPACT);
  const auto before = tokens.first(first * runtime.segment_tokens());
  request.mutable_token_ids()->Assign(before.begin(), before.end());
  absl::StatusOr<v1::MatchPrefixResponse> match = runtime.kv().MatchPrefix(request, deadline);
  if (!match.ok()) return match.status();
  if (match->segments_size() < first) return std::string();
  return match->segments(static_cast<int>(first) - 1).block_key();
}

}  // namespace

absl::StatusOr<uint32_t> UploadSealed(const WorkerRuntime& runtime,
                                      std::span<const SealedSegment> sealed,
                                      std::span<const int32_t> tokens, absl::Time deadline) {
  const int64_t first = sealed.front().index;
  absl::StatusOr<std::string> parent = ParentKey(runtime, first, tokens, deadline);
  if (!parent.ok()) return parent.status();
  if (parent->empty()) return 0;
  if (absl::Status s = runtime.PutProfile(); !s.ok()) return s;

  v1::PutHeader header;
  *header.mutable_namespace_() = runtime.ns(v1::CACHE_MODE_COMPACT);
  header.set_parent_key(*parent);
  header.set_first_segment_index(first);
  const int64_t segment_tokens = runtime.segment_tokens();
  const auto covered = tokens.subspan(first * segment_tokens, sealed.size() * segment_tokens);
  header.mutable_token_ids()->Assign(covered.begin(), covered.end());
  header.set_payload_form(v1::SEGMENT_FORM_COMPACT);
  absl::StatusOr<std::unique_ptr<PutStream>> put = runtime.kv().Put(header, deadline);
  if (!put.ok()) return put.status();
  for (size_t i = 0; i < sealed.size(); ++i) {
    const SealedSegment& segment = sealed[i];
    if (!(*put)->needs(segment.index)) continue;
    WriteHeaders(segment, *runtime.layout(), (*put)->keys()[i]);
    for (size_t p = 0; p < segment.parts.size(); ++p) {
      const std::span<const std::byte> blob(*segment.parts[p].blob);
      if (absl::Status s =
              (*put)->Send(segment.index, static_cast<int>(p / 2), static_cast<Part>(p % 2), blob);
          !s.ok()) {
        return s;
      }
    }
  }
  absl::StatusOr<v1::PutCommitted> committed = (*put)->Commit();
  if (!committed.ok()) return committed.status();
  return committed->stored_segments();
}

}  // namespace fourierkv
