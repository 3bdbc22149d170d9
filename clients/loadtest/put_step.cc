#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "clients/loadtest/operation.h"
#include "proto/support/convert.h"
#include "proto/support/grpc_status.h"

namespace fourierkv::loadtest {
namespace {

constexpr size_t kChunkBytes = 1 << 20;

// Writes one message after the other: the header, then, once the service has said what it needs,
// the chunks, then the commit. One read is always open: the service may end the put at any time.
class PutStep final
    : public Operation,
      private grpc::ClientBidiReactor<v1::PutSegmentsRequest, v1::PutSegmentsResponse> {
 public:
  PutStep(const OperationSetup& setup, Stub* stub, SequenceId id, int64_t first, int64_t end,
          bool exact, Deadline deadline, std::shared_ptr<std::vector<Digest>> keys)
      : setup_(setup),
        stub_(stub),
        first_(first),
        end_(end),
        exact_(exact),
        keys_(std::move(keys)) {
    context_.set_deadline(deadline);
    v1::PutHeader* header = request_.mutable_header();
    *header->mutable_namespace_() = setup.ns;
    if (first > 0) header->set_parent_key((*keys_)[first - 1].ToString());
    header->set_first_segment_index(static_cast<uint64_t>(first));
    const PopulationOptions& population = setup.population->options();
    const int64_t from = first * population.segment_tokens;
    const int64_t count = std::min(end * population.segment_tokens, population.tokens) - from;
    header->mutable_token_ids()->Resize(static_cast<int>(count), 0);
    setup.population->Tokens(id, from, count, header->mutable_token_ids()->mutable_data());
    header->set_payload_form(exact ? v1::SEGMENT_FORM_EXACT : ToProto(setup.payload->form()));
    header->set_keep_exact_from(setup.keep_exact ? 0 : static_cast<uint64_t>(end));
    header->set_exact_form(setup.exact_form);
  }

  void Start(Done done) override {
    done_ = std::move(done);
    stub_->async()->PutSegments(&context_, this);
    setup_.traffic->sent += request_.ByteSizeLong();
    StartWrite(&request_);
    StartRead(&response_);
    StartCall();
  }

  void Cancel() override { context_.TryCancel(); }

 private:
  struct Needed {
    SegmentPlace place;
    int layer = 0;  // the next part to send
    Part part = Part::kK;
  };

  void OnWriteDone(bool ok) override {
    if (!ok) return;  // OnDone says why
    if (std::exchange(header_sent_, true)) {
      WriteNext();
    } else {
      Begin();
    }
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    setup_.traffic->received += response_.ByteSizeLong();
    if (response_.has_committed()) {
      committed_ = true;
      result_.stored_segments = response_.committed().stored_segments();
      result_.deduplicated_segments = response_.committed().deduplicated_segments();
      return;
    }
    if (absl::Status s = Accept(response_.accepted()); !s.ok()) {
      failure_ = std::move(s);
      context_.TryCancel();
      return;
    }
    StartRead(&response_);
    Begin();
  }

  absl::Status Accept(const v1::PutAccepted& accepted) {
    if (accepted.block_keys_size() != end_ - first_) {
      return absl::InternalError(absl::StrCat("the service gave ", accepted.block_keys_size(),
                                              " keys for ", end_ - first_, " segments"));
    }
    for (const std::string& raw : accepted.block_keys()) {
      absl::StatusOr<Digest> key = Digest::FromRaw(raw, "accepted.block_keys");
      if (!key.ok()) return key.status();
      keys_->push_back(*key);
    }
    for (const uint64_t index : accepted.needed_segments()) {
      const auto i = static_cast<int64_t>(index);
      if (i < first_ || i >= end_) {
        return absl::InternalError(
            absl::StrCat("the service needs segment ", index, ", which is not one of the put"));
      }
      needed_.push_back({{(*keys_)[i], i, setup_.population->SegmentTokens(i)}});
    }
    return absl::OkStatus();
  }

  // Called when the header is sent and when the put is accepted, in either order.
  void Begin() {
    if (begun_.fetch_add(1) == 1) WriteNext();
  }

  void WriteNext() {
    if (next_ == needed_.size()) {
      if (std::exchange(committing_, true)) return;
      request_.mutable_commit();
      StartWriteLast(&request_, grpc::WriteOptions());
      return;
    }
    Needed& needed = needed_[next_];
    v1::PutChunk* chunk = request_.mutable_chunk();
    if (offset_ == 0) {
      exact_ ? setup_.payload->MakeExact(needed.place, needed.layer, needed.part, &part_)
             : setup_.payload->Make(needed.place, needed.layer, needed.part, &part_);
    }
    const size_t size = std::min(kChunkBytes, part_.size() - offset_);
    chunk->set_segment_index(static_cast<uint64_t>(needed.place.index));
    chunk->set_layer(static_cast<uint32_t>(needed.layer));
    chunk->set_part(ToProto(needed.part));
    chunk->set_offset(offset_);
    chunk->set_part_bytes(part_.size());
    if (size == part_.size()) {
      chunk->mutable_data()->swap(part_);  // its old buffer is used again
    } else {
      chunk->set_data(part_.data() + offset_, size);
    }
    chunk->set_checksum(Checksum(std::as_bytes(std::span(chunk->data()))));
    offset_ += size;
    if (offset_ == chunk->part_bytes()) Advance(needed);
    setup_.traffic->sent += request_.ByteSizeLong();
    StartWrite(&request_);
  }

  void Advance(Needed& needed) {
    offset_ = 0;
    if (needed.part == Part::kK) {
      needed.part = Part::kV;
      return;
    }
    needed.part = Part::kK;
    if (++needed.layer < static_cast<int>(setup_.ns.layers())) return;
    sent_tokens_ += needed.place.tokens;
    ++next_;
  }

  void OnDone(const grpc::Status& status) override {
    result_.status = failure_.ok() ? FromGrpc(status) : failure_;
    if (result_.status.ok() && !committed_) {
      result_.status = absl::InternalError("the service ended the put without an answer");
    }
    if (result_.status.ok()) {
      const KvGeometry geometry{static_cast<int>(setup_.ns.layers()),
                                static_cast<int>(setup_.ns.kv_heads()),
                                static_cast<int>(setup_.ns.head_dim())};
      result_.dense_sent = static_cast<uint64_t>(geometry.DenseBytes(sent_tokens_));
    }
    const Done done = std::move(done_);
    done(std::move(result_));  // `this` may be gone after it
  }

  const OperationSetup& setup_;
  Stub* const stub_;
  const int64_t first_;
  const int64_t end_;
  const bool exact_;
  const std::shared_ptr<std::vector<Digest>> keys_;
  grpc::ClientContext context_;
  v1::PutSegmentsRequest request_;
  v1::PutSegmentsResponse response_;
  std::atomic<int> begun_{0};
  bool header_sent_ = false;
  bool committing_ = false;
  bool committed_ = false;
  std::vector<Needed> needed_;
  size_t next_ = 0;  // into needed_
  std::string part_;
  size_t offset_ = 0;  // into part_
  int64_t sent_tokens_ = 0;
  absl::Status failure_;
  OperationResult result_;
  Done done_;
};

}  // namespace

std::shared_ptr<Operation> MakePutStep(const OperationSetup& setup, Stub* stub, SequenceId id,
                                       int64_t first, int64_t end, bool exact, Deadline deadline,
                                       std::shared_ptr<std::vector<Digest>> keys) {
  return std::make_shared<PutStep>(setup, stub, id, first, end, exact, deadline, std::move(keys));
}

}  // namespace fourierkv::loadtest
