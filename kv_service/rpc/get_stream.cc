#include "kv_service/rpc/get_stream.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kv_service/rpc/namespace_convert.h"
#include "proto/support/convert.h"

namespace fourierkv {
namespace {

constexpr size_t kBatchBytes = 1 << 18;
// Of a message that a client has not read yet: as it was made, as gRPC encoded it, and what its
// transport keeps.
constexpr int64_t kBatchCopies = 3;
// Dense bytes that are read and made at once: tens of milliseconds of work.
constexpr int64_t kReadBytes = 16 << 20;
constexpr absl::Duration kLongestTierWait = absl::Seconds(10);
constexpr absl::Duration kLongestTierWaitAsked = absl::Minutes(10);

absl::StatusOr<std::vector<SegmentWant>> ParseWants(const v1::GetSegmentsRequest& request) {
  if (request.segments().empty()) {
    return absl::InvalidArgumentError("segments is empty; ask for at least one");
  }
  if (request.segments_size() > kMaxSegmentsPerGet) {
    return absl::InvalidArgumentError(absl::StrCat("segments has ", request.segments_size(),
                                                   " entries; at most ", kMaxSegmentsPerGet,
                                                   " are taken at once"));
  }
  absl::StatusOr<float> bound = ParseErrorBound(request.max_relative_error(), "max_relative_error");
  if (!bound.ok()) return bound.status();
  std::vector<SegmentWant> wants;
  wants.reserve(request.segments_size());
  for (int i = 0; i < request.segments_size(); ++i) {
    const v1::SegmentRequest& segment = request.segments(i);
    const std::string field = absl::StrCat("segments[", i, "]");
    absl::StatusOr<Digest> key = Digest::FromRaw(segment.block_key(), field + ".block_key");
    if (!key.ok()) return key.status();
    SegmentWant want;
    want.key = *key;
    want.max_relative_error = *bound;
    for (const int form : segment.accepted_forms()) {
      absl::StatusOr<SegmentForm> parsed =
          FromProto(static_cast<v1::SegmentForm>(form), field + ".accepted_forms");
      if (!parsed.ok()) return parsed.status();
      if (std::find(want.forms.begin(), want.forms.end(), *parsed) != want.forms.end()) {
        return absl::InvalidArgumentError(field + ".accepted_forms names a form twice");
      }
      want.forms.push_back(*parsed);
    }
    wants.push_back(std::move(want));
  }
  return wants;
}

// What is stored under another namespace than the one given counts as missing.
absl::Status HideOtherNamespaces(const v1::CacheNamespace& message, const std::string& tenant,
                                 std::vector<OpenSegment>& open) {
  absl::StatusOr<CacheNamespace> ns = FromProto(message, tenant);
  if (!ns.ok()) return ns.status();
  const Digest root = ns->RootKey();
  for (OpenSegment& segment : open) {
    const NamespaceContext* const context = segment.segment.context.get();
    if (context == nullptr || context->root == root) continue;
    segment.missing = MissingReason::kNotStored;
    segment.max_relative_error = 0;
    segment.source.reset();
  }
  return absl::OkStatus();
}

v1::MissingReason ToProto(MissingReason reason) { return static_cast<v1::MissingReason>(reason); }

v1::GetSegmentsResponse MakePlan(const std::vector<OpenSegment>& open, int first_layer,
                                 int layers) {
  v1::GetSegmentsResponse response;
  for (const OpenSegment& segment : open) {
    v1::SegmentPlan* plan = response.mutable_plan()->add_segments();
    if (segment.missing != MissingReason::kNone) {
      plan->set_missing_reason(ToProto(segment.missing));
      plan->set_max_relative_error(segment.max_relative_error);  // with an error bound
      continue;
    }
    const KvGeometry& geometry = segment.segment.context->ns.geometry;
    plan->set_form(ToProto(segment.form));
    const int64_t bytes = segment.Bytes(first_layer, layers);
    plan->set_bytes(bytes);
    const double elements =
        2.0 * layers * geometry.PartBytes(segment.segment.tokens) / kKvDtypeBytes;
    plan->set_bits_per_element(static_cast<float>(8.0 * static_cast<double>(bytes) / elements));
    plan->set_mean_relative_error(segment.mean_relative_error);
    plan->set_max_relative_error(segment.max_relative_error);
    plan->set_error_unknown(segment.error_unknown);
  }
  return response;
}

// How long tiers beneath memory may take: what comes later would come too late to be sent.
Patience TierPatience(const v1::GetSegmentsRequest& request, const Patience& call) {
  const absl::Time now = absl::Now();
  const absl::Duration left = call.deadline() - now;
  absl::Duration wait = std::min(kLongestTierWait, left / 2);
  if (request.has_tier_wait()) wait = std::min(FromProto(request.tier_wait()), left);
  return call.Until(now + std::clamp(wait, absl::ZeroDuration(), kLongestTierWaitAsked));
}

// Collects pieces of blobs into messages of about kBatchBytes.
class BatchWriter {
 public:
  BatchWriter(grpc::ServerWriter<v1::GetSegmentsResponse>& writer, CallWatch::Call& call,
              WorkGate::Call& place)
      : writer_(writer), call_(call), place_(place) {}

  // False when the client is gone.
  bool Add(int request_index, int layer, Part part, std::span<const std::byte> blob) {
    for (size_t offset = 0; offset < blob.size();) {
      if (filled_ >= kBatchBytes && !Flush()) return false;
      const auto piece =
          blob.subspan(offset, std::min(kBatchBytes - filled_, blob.size() - offset));
      v1::BlobPiece* message = response_.mutable_batch()->add_pieces();
      message->set_request_index(request_index);
      message->set_layer(layer);
      message->set_part(fourierkv::ToProto(part));
      message->set_offset(offset);
      message->set_blob_bytes(blob.size());
      message->set_data(piece.data(), piece.size());
      filled_ += piece.size();
      offset += piece.size();
    }
    bytes_ += static_cast<int64_t>(blob.size());
    return true;
  }

  bool Flush() {
    if (filled_ == 0) return true;
    call_.AwaitClient();
    place_.Pause();
    const bool written = writer_.Write(response_);
    call_.Progress();
    response_.Clear();
    filled_ = 0;
    if (written) place_.Continue();
    return written;
  }

  int64_t bytes() const { return bytes_; }

 private:
  grpc::ServerWriter<v1::GetSegmentsResponse>& writer_;
  CallWatch::Call& call_;
  WorkGate::Call& place_;
  v1::GetSegmentsResponse response_;
  size_t filled_ = 0;
  int64_t bytes_ = 0;
};

// How many segments from `first` on, one at least, have kReadBytes in one layer.
size_t GroupSize(const std::vector<OpenSegment>& open, size_t first) {
  int64_t bytes = 0;
  size_t end = first;
  while (end < open.size() && bytes < kReadBytes) {
    const OpenSegment& segment = open[end++];
    if (segment.missing != MissingReason::kNone) continue;
    bytes += 2 * segment.segment.context->ns.geometry.PartBytes(segment.segment.tokens);
  }
  return end - first;
}

}  // namespace

absl::Status ServeGet(ServiceCore& core, const TenantView& view,
                      const v1::GetSegmentsRequest& request,
                      grpc::ServerWriter<v1::GetSegmentsResponse>& writer, CallWatch::Call& call,
                      WorkGate::Call& place) {
  const Patience& patience = call.patience();
  const absl::StatusOr<TenantQuotas::Share> stream = core.quotas->TakeStream(view.tenant());
  if (!stream.ok()) return stream.status();
  absl::StatusOr<std::vector<SegmentWant>> wants = ParseWants(request);
  if (!wants.ok()) return wants.status();
  for (SegmentWant& want : *wants) {
    if (view.IsForeign(want.key)) want.key = BlockKey();  // which nothing has
  }
  absl::StatusOr<std::vector<OpenSegment>> opened =
      core.reader.Open(*wants, TierPatience(request, patience), patience);
  if (!opened.ok()) return opened.status();
  std::vector<OpenSegment>& open = *opened;
  view.HideForeign(open);
  if (request.has_namespace_()) {
    if (absl::Status s = HideOtherNamespaces(request.namespace_(), view.tenant(), open); !s.ok())
      return s;
  }

  int64_t layers = -1;  // of what is there; all segments of a get are of one model
  for (const OpenSegment& segment : open) {
    if (segment.missing != MissingReason::kNone) continue;
    const int64_t own = segment.segment.context->ns.geometry.layers;
    if (layers >= 0 && own != layers) {
      return absl::InvalidArgumentError("segments are of models with different layer counts");
    }
    layers = own;
  }
  const int64_t first = request.first_layer();
  int64_t end = first;
  if (layers >= 0) {
    end = request.layer_count() == 0 ? layers : first + request.layer_count();
    if (first >= layers || end > layers) {
      return absl::OutOfRangeError(
          absl::StrCat("layers ", first, " to ", end, " were asked for; the model has ", layers));
    }
  }
  // However many clients read however slowly, what waits for them is within a budget.
  int64_t bytes = 0;
  for (const OpenSegment& segment : open) {
    if (segment.missing != MissingReason::kNone) continue;
    bytes += segment.Bytes(static_cast<int>(first), static_cast<int>(end - first));
  }
  const absl::StatusOr<MemoryReservation> waiting =
      core.scratch->TryReserve(kBatchCopies * std::min<int64_t>(bytes, kBatchBytes));
  if (!waiting.ok()) return waiting.status();
  call.AwaitClient();
  if (!writer.Write(MakePlan(open, static_cast<int>(first), static_cast<int>(end - first)))) {
    return absl::CancelledError("the client is gone");
  }
  call.Progress();

  const absl::Time begun = absl::Now();
  BatchWriter batch(writer, call, place);
  for (int64_t layer = first; layer < end; ++layer) {
    // Some segments at a time: what is made waits for the client in bounded memory, and a call that
    // is over costs no more than this.
    size_t first_read = 0;
    absl::StatusOr<std::vector<LayerRead>> blobs = std::vector<LayerRead>();
    for (size_t i = 0; i < open.size(); ++i) {
      if (i == first_read + blobs->size()) {
        first_read = i;
        blobs = core.reader.ReadLayer(std::span(open).subspan(i, GroupSize(open, i)),
                                      static_cast<int>(layer), patience);
        if (!blobs.ok()) return blobs.status();
      }
      const LayerRead& read = (*blobs)[i - first_read];
      if (read.missing == MissingReason::kCorrupt) {
        // The plan promised it; the client must not take the rest for whole.
        return absl::DataLossError(absl::StrCat("segments[", i,
                                                "] was found damaged and removed; match the prefix "
                                                "again"));
      }
      if (read.missing != MissingReason::kNone) continue;
      const int index = static_cast<int>(i);
      const int number = static_cast<int>(layer);
      if (!batch.Add(index, number, Part::kK, read.k->bytes()) ||
          !batch.Add(index, number, Part::kV, read.v->bytes())) {
        return absl::CancelledError("the client is gone");
      }
    }
    // A layer is never held back: the decoder may be waiting for just this one.
    if (!batch.Flush()) return absl::CancelledError("the client is gone");
  }
  core.fetch_bandwidth.Record(batch.bytes(), absl::Now() - begun);
  return absl::OkStatus();
}

}  // namespace fourierkv
