#include <grpcpp/grpcpp.h>

#include <utility>

#include "clients/loadtest/operation.h"
#include "proto/support/grpc_status.h"

namespace fourierkv::loadtest {
namespace {

class MatchStep final : public Operation {
 public:
  MatchStep(const OperationSetup& setup, Stub* stub, SequenceId id, Deadline deadline,
            std::shared_ptr<std::vector<Digest>> keys)
      : setup_(setup), stub_(stub), keys_(std::move(keys)) {
    context_.set_deadline(deadline);
    const Population& population = *setup.population;
    const SequenceKeys known = setup.match_by_keys ? population.Keys(id) : nullptr;
    if (known != nullptr) {
      // A match by keys is of full segments.
      const int64_t full = population.options().tokens / population.options().segment_tokens;
      asked_tokens_ = static_cast<uint64_t>(full * population.options().segment_tokens);
      for (int64_t i = 0; i < full; ++i) request_.add_block_keys((*known)[i].ToString());
      return;
    }
    const int64_t tokens = population.options().tokens;
    asked_tokens_ = static_cast<uint64_t>(tokens);
    *request_.mutable_namespace_() = setup.ns;
    request_.mutable_token_ids()->Resize(static_cast<int>(tokens), 0);
    population.Tokens(id, 0, tokens, request_.mutable_token_ids()->mutable_data());
  }

  void Start(Done done) override {
    done_ = std::move(done);
    setup_.traffic->sent += request_.ByteSizeLong();
    stub_->async()->MatchPrefix(&context_, &request_, &response_,
                                [this](const grpc::Status& status) { Finish(FromGrpc(status)); });
  }

  void Cancel() override { context_.TryCancel(); }

 private:
  void Finish(absl::Status status) {
    OperationResult result;
    if (status.ok()) {
      setup_.traffic->received += response_.ByteSizeLong();
      result.asked_tokens = asked_tokens_;
      result.hit_tokens = response_.matched_tokens();
      if (result.hit_tokens > asked_tokens_) {
        result.wrong = true;
        status = absl::DataLossError("more tokens matched than were asked for");
      }
    }
    for (int i = 0; status.ok() && keys_ != nullptr && i < response_.segments_size(); ++i) {
      absl::StatusOr<Digest> key =
          Digest::FromRaw(response_.segments(i).block_key(), "segments.block_key");
      if (key.ok()) keys_->push_back(*key);
      status = key.status();
    }
    result.status = std::move(status);
    const Done done = std::move(done_);
    done(std::move(result));  // `this` may be gone after it
  }

  const OperationSetup& setup_;
  Stub* const stub_;
  const std::shared_ptr<std::vector<Digest>> keys_;
  uint64_t asked_tokens_ = 0;
  grpc::ClientContext context_;
  v1::MatchPrefixRequest request_;
  v1::MatchPrefixResponse response_;
  Done done_;
};

}  // namespace

std::shared_ptr<Operation> MakeMatchStep(const OperationSetup& setup, Stub* stub, SequenceId id,
                                         Deadline deadline,
                                         std::shared_ptr<std::vector<Digest>> keys) {
  return std::make_shared<MatchStep>(setup, stub, id, deadline, std::move(keys));
}

}  // namespace fourierkv::loadtest
