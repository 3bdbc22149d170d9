#include <grpcpp/grpcpp.h>

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "clients/cpp/blob_assembler.h"
#include "clients/loadtest/operation.h"
#include "proto/support/grpc_status.h"

namespace fourierkv::loadtest {
namespace {

class GetStep final : public Operation, private grpc::ClientReadReactor<v1::GetSegmentsResponse> {
 public:
  GetStep(const OperationSetup& setup, Stub* stub, Deadline deadline, SequenceKeys keys)
      : setup_(setup), stub_(stub), keys_(std::move(keys)), assembler_(request_) {
    context_.set_deadline(deadline);
    *request_.mutable_namespace_() = setup.ns;
    for (const Digest& key : *keys_) {
      v1::SegmentRequest* segment = request_.add_segments();
      segment->set_block_key(key.ToString());
      for (const v1::SegmentForm form : setup.accepted_forms) segment->add_accepted_forms(form);
    }
    result_.asked_tokens = static_cast<uint64_t>(setup.population->options().tokens);
  }

  void Start(Done done) override {
    done_ = std::move(done);
    setup_.traffic->sent += request_.ByteSizeLong();
    stub_->async()->GetSegments(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }

  void Cancel() override { context_.TryCancel(); }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return;  // OnDone follows
    setup_.traffic->received += response_.ByteSizeLong();
    if (absl::Status s = Consume(); !s.ok()) {
      wrong_ = std::move(s);
      context_.TryCancel();
      return;
    }
    StartRead(&response_);
  }

  absl::Status Consume() {
    if (response_.has_plan()) return ConsumePlan(response_.plan());
    if (setup_.verifier == nullptr) return absl::OkStatus();
    for (const v1::BlobPiece& piece : response_.batch().pieces()) {
      absl::StatusOr<std::optional<FetchedBlob>> blob = assembler_.Add(piece);
      if (!blob.ok()) return blob.status();
      if (!blob->has_value()) continue;
      const int64_t index = (*blob)->request_index;
      if (absl::Status s = setup_.verifier->Check(
              **blob, {(*keys_)[index], index, setup_.population->SegmentTokens(index)});
          !s.ok()) {
        return s;
      }
      result_.verified_bytes += (*blob)->bytes.size();
      ++blobs_;
    }
    return absl::OkStatus();
  }

  absl::Status ConsumePlan(const v1::GetPlan& plan) {
    if (planned_ || plan.segments_size() != request_.segments_size()) {
      return absl::DataLossError("the plan of a fetch is not of the segments that were asked for");
    }
    planned_ = true;
    assembler_.Expect(plan);
    for (int i = 0; i < plan.segments_size(); ++i) {
      const v1::SegmentPlan& segment = plan.segments(i);
      if (segment.form() != v1::SEGMENT_FORM_UNSPECIFIED) {
        result_.hit_tokens += static_cast<uint64_t>(setup_.population->SegmentTokens(i));
        ++present_;
      } else if (v1::MissingReason_IsValid(segment.missing_reason())) {
        ++result_.missing[segment.missing_reason()];
      }
    }
    return absl::OkStatus();
  }

  void OnDone(const grpc::Status& status) override {
    result_.status = FromGrpc(status);
    const int64_t wanted = 2 * present_ * static_cast<int64_t>(setup_.ns.layers());
    if (wrong_.ok() && result_.status.ok() && setup_.verifier != nullptr && blobs_ != wanted) {
      wrong_ = absl::DataLossError(
          absl::StrCat("a fetch ended well with ", blobs_, " of ", wanted, " blobs"));
    }
    if (!wrong_.ok()) {
      result_.wrong = true;
      result_.status = wrong_;
    }
    if (result_.status.ok()) {
      const KvGeometry geometry{static_cast<int>(setup_.ns.layers()),
                                static_cast<int>(setup_.ns.kv_heads()),
                                static_cast<int>(setup_.ns.head_dim())};
      result_.dense_received =
          static_cast<uint64_t>(geometry.DenseBytes(static_cast<int64_t>(result_.hit_tokens)));
    } else {
      result_.asked_tokens = result_.hit_tokens = 0;
    }
    const Done done = std::move(done_);
    done(std::move(result_));  // `this` may be gone after it
  }

  const OperationSetup& setup_;
  Stub* const stub_;
  const SequenceKeys keys_;
  grpc::ClientContext context_;
  v1::GetSegmentsRequest request_;
  v1::GetSegmentsResponse response_;
  BlobAssembler assembler_;
  bool planned_ = false;
  int64_t present_ = 0;
  int64_t blobs_ = 0;
  absl::Status wrong_;
  OperationResult result_;
  Done done_;
};

}  // namespace

std::shared_ptr<Operation> MakeGetStep(const OperationSetup& setup, Stub* stub, Deadline deadline,
                                       SequenceKeys keys) {
  return std::make_shared<GetStep>(setup, stub, deadline, std::move(keys));
}

}  // namespace fourierkv::loadtest
