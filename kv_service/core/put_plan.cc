#include "kv_service/core/put_plan.h"

#include <algorithm>
#include <span>

#include "absl/strings/str_cat.h"
#include "compute/codec/sequence_layout.h"
#include "kv_service/core/archived_blob.h"

namespace fourierkv {

bool KeepsExact(const NamespaceContext& context, int64_t index, bool tail,
                int64_t keep_exact_from) {
  return !KeepsCompact(context, index, tail) || index >= keep_exact_from;
}

bool KeepsCompact(const NamespaceContext& context, int64_t index, bool tail) {
  if (context.sequence() != nullptr) return true;
  return context.layout != nullptr && index > 0 && !tail;
}

namespace {

absl::Status CheckCompressedForm(const PutPlan& plan) {
  if (plan.compressed_form == SegmentForm::kCompact) return absl::OkStatus();
  if (plan.compressed_form != SegmentForm::kArchived) {
    return absl::InvalidArgumentError(absl::StrCat("put: compressed_form is ",
                                                   FormName(plan.compressed_form),
                                                   "; it must be COMPACT or ARCHIVED"));
  }
  if (plan.payload == PutPayload::kCompact) {
    return absl::InvalidArgumentError(
        "put: compressed_form is ARCHIVED, but payload_form is COMPACT, which cannot be archived: "
        "put with payload_form EXACT or LOSSLESS");
  }
  if (!CanArchive(*plan.context)) {
    return absl::InvalidArgumentError(
        "put: compressed_form is ARCHIVED, but the namespace has no profile with an archive "
        "section");
  }
  return absl::OkStatus();
}

// Tokens and place of a put of segments.
absl::Status CheckSegments(const PutPlan& plan) {
  if (plan.sequence_capacity != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("put: sequence_capacity is ", plan.sequence_capacity,
                     ", but the namespace has no codec profile of whole sequences; leave it out"));
  }
  const int64_t segment_tokens = plan.context->ns.segment_tokens;
  const int64_t tokens = static_cast<int64_t>(plan.token_ids.size());
  if (tokens < 1 || tokens > kMaxPutSegments * segment_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("put: token_ids has ", tokens, " ids; it must have 1 to ",
                     kMaxPutSegments * segment_tokens, " (", kMaxPutSegments, " segments)"));
  }
  const int64_t count = (tokens + segment_tokens - 1) / segment_tokens;
  if (plan.first_segment_index < 0 || plan.first_segment_index > kMaxSegmentIndex - count) {
    return absl::InvalidArgumentError(
        absl::StrCat("put: first_segment_index is ", plan.first_segment_index, "; with ", count,
                     " segments it must be from 0 to ", kMaxSegmentIndex - count));
  }
  if (plan.first_segment_index == 0 && plan.parent.has_value()) {
    return absl::InvalidArgumentError(
        "put: parent_key is given, but segment 0 has none; leave it empty");
  }
  if (plan.first_segment_index > 0 && !plan.parent.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "put: parent_key is missing; segment ", plan.first_segment_index, " follows another one"));
  }
  return absl::OkStatus();
}

// The same of a put of a whole sequence.
absl::Status CheckSequence(const PutPlan& plan) {
  if (plan.first_segment_index != 0 || plan.parent.has_value()) {
    return absl::InvalidArgumentError(
        "put: a whole sequence is segment 0; leave first_segment_index and parent_key out");
  }
  const auto tokens = static_cast<int64_t>(plan.token_ids.size());
  if (auto s = CheckSequenceShape(tokens, plan.sequence_capacity); !s.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("put: token_ids and sequence_capacity: ", s.message()));
  }
  const SequenceLayout& layout = *plan.context->sequence();
  int64_t largest = plan.context->ns.geometry.PartBytes(tokens);
  for (int layer = 0; layer < plan.context->ns.geometry.layers; ++layer) {
    for (const Part part : kParts) {
      largest = std::max(largest, layout.part(layer, part).PayloadBytes(tokens));
    }
  }
  constexpr auto kMost = static_cast<int64_t>(kMaxBlobBytes - kBlobHeaderBytes) -
                         static_cast<int64_t>(kLosslessOverheadBytes);
  if (largest > kMost) {
    return absl::InvalidArgumentError(
        absl::StrCat("put: token_ids has ", tokens, " ids, which take ", largest,
                     " bytes for K or V of one layer; at most ", kMost, " fit into a blob"));
  }
  return absl::OkStatus();
}

// What COMPACT payload needs besides.
absl::Status CheckCompactPayload(const PutPlan& plan) {
  if (plan.max_relative_error != kNoErrorBound) {
    return absl::InvalidArgumentError(
        "put: max_relative_error needs exact data to fall back on, and payload_form is COMPACT: "
        "leave it out, or put with payload_form EXACT or LOSSLESS");
  }
  if (plan.context->sequence() != nullptr) return absl::OkStatus();
  if (plan.context->layout == nullptr) {
    return absl::InvalidArgumentError(
        "put: payload_form is COMPACT, but the namespace has no profile_id");
  }
  const auto tail = static_cast<int64_t>(plan.token_ids.size()) % plan.context->ns.segment_tokens;
  if (tail != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("put: payload_form is COMPACT, but the last segment is a tail of ", tail,
                     " tokens; tails are exact: put it with payload_form EXACT"));
  }
  if (plan.first_segment_index == 0) {
    return absl::InvalidArgumentError(
        "put: payload_form is COMPACT, but segment 0 is kept exact: put it with payload_form "
        "EXACT");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckPutPlan(const PutPlan& plan) {
  if (plan.context == nullptr) return absl::InvalidArgumentError("put: namespace is missing");
  if (auto s = plan.context->sequence() != nullptr ? CheckSequence(plan) : CheckSegments(plan);
      !s.ok()) {
    return s;
  }
  if (plan.keep_exact_from < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("put: keep_exact_from is ", plan.keep_exact_from, "; it must be at least 0"));
  }
  if (!IsExactData(plan.exact_form)) {
    return absl::InvalidArgumentError(absl::StrCat("put: exact_form is ", FormName(plan.exact_form),
                                                   "; it must be EXACT or LOSSLESS"));
  }
  if (auto s = CheckCompressedForm(plan); !s.ok()) return s;
  if (!(plan.max_relative_error >= 0)) {
    return absl::InvalidArgumentError(absl::StrCat("put: max_relative_error is ",
                                                   plan.max_relative_error,
                                                   "; it must be a number of at least 0"));
  }
  if (plan.ttl <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("put: ttl is ", absl::FormatDuration(plan.ttl), "; it must be above 0"));
  }
  switch (plan.payload) {
    case PutPayload::kDense:
    case PutPayload::kLossless:
      return absl::OkStatus();
    case PutPayload::kCompact:
      return CheckCompactPayload(plan);
  }
  return absl::InvalidArgumentError("put: payload_form must be EXACT, LOSSLESS or COMPACT");
}

std::vector<PlannedSegment> PlanSegments(const PutPlan& plan) {
  const NamespaceContext& context = *plan.context;
  if (context.sequence() != nullptr) {
    PlannedSegment whole;
    whole.key = SequenceKey(context.root, plan.sequence_capacity, plan.token_ids);
    whole.parent = context.root;
    whole.tokens = static_cast<int>(plan.token_ids.size());
    whole.keep_compact = true;
    whole.keep_exact = plan.payload != PutPayload::kCompact &&
                       KeepsExact(context, 0, /*tail=*/false, plan.keep_exact_from);
    return {whole};
  }
  const KeyChain chain =
      ChainKeys(plan.parent.value_or(context.root), context.ns.segment_tokens, plan.token_ids);
  std::vector<PlannedSegment> segments;
  const auto add = [&](const BlockKey& key, int tokens, bool tail) {
    PlannedSegment segment;
    segment.key = key;
    segment.parent = segments.empty() ? plan.parent.value_or(context.root) : segments.back().key;
    segment.index = plan.first_segment_index + static_cast<int64_t>(segments.size());
    segment.tokens = tokens;
    segment.tail = tail;
    segment.keep_compact = KeepsCompact(context, segment.index, tail);
    segment.keep_exact = plan.payload != PutPayload::kCompact &&
                         KeepsExact(context, segment.index, tail, plan.keep_exact_from);
    segments.push_back(segment);
  };
  for (const BlockKey& key : chain.segments) add(key, context.ns.segment_tokens, false);
  if (chain.tail.has_value()) {
    add(*chain.tail, static_cast<int>(plan.token_ids.size() % context.ns.segment_tokens), true);
  }
  return segments;
}

}  // namespace fourierkv
