// Requests of the calls that read, lease and remove: each is answered with a status that says what
// is wrong, or with what was put, and leaves nothing behind. Input: one byte that says which call,
// then its request.

#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "fuzz_service.h"
#include "proto/support/grpc_status.h"

namespace {

using namespace fourierkv;

template <typename Request>
bool Parse(absl::string_view bytes, Request& request) {
  return request.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
}

void MendKeys(const FuzzService& fuzz, google::protobuf::RepeatedPtrField<std::string>* keys) {
  for (std::string& key : *keys) fuzz.MendKey(&key);
}

void Release(FuzzService& fuzz, uint64_t lease) {
  if (lease == 0) return;
  v1::ReleaseRequest request;
  request.set_lease_id(lease);
  grpc::ClientContext context;
  v1::ReleaseResponse response;
  if (!fuzz.raw().Release(&context, request, &response).ok()) std::abort();
}

// The client library refuses what is damaged or was not asked for: the service must never send it.
void Get(FuzzService& fuzz, absl::string_view bytes) {
  v1::GetSegmentsRequest request;
  if (!Parse(bytes, request)) return;
  for (v1::SegmentRequest& segment : *request.mutable_segments()) {
    fuzz.MendKey(segment.mutable_block_key());
  }
  if (request.has_namespace_()) fuzz.MendNamespace(request.mutable_namespace_());
  const auto fetched = Fetch(fuzz.service().client(), request);
  FuzzService::ExpectCanonical(fetched.status());
  if (absl::IsDataLoss(fetched.status())) std::abort();
  if (fetched.ok() && fetched->plan.segments_size() != request.segments_size()) std::abort();
}

void Match(FuzzService& fuzz, absl::string_view bytes) {
  v1::MatchPrefixRequest request;
  if (!Parse(bytes, request)) return;
  MendKeys(fuzz, request.mutable_block_keys());
  if (request.has_namespace_()) fuzz.MendNamespace(request.mutable_namespace_());
  const auto match = fuzz.service().client().MatchPrefix(request, Soon());
  FuzzService::ExpectCanonical(match.status());
  if (match.ok()) Release(fuzz, match->lease_id());
}

void Pin(FuzzService& fuzz, absl::string_view bytes) {
  v1::PinRequest request;
  if (!Parse(bytes, request)) return;
  MendKeys(fuzz, request.mutable_block_keys());
  grpc::ClientContext context;
  v1::PinResponse response;
  const absl::Status status = FromGrpc(fuzz.raw().Pin(&context, request, &response));
  FuzzService::ExpectCanonical(status);
  if (status.ok()) Release(fuzz, response.lease_id());
}

void Exists(FuzzService& fuzz, absl::string_view bytes) {
  v1::ExistsRequest request;
  if (!Parse(bytes, request)) return;
  MendKeys(fuzz, request.mutable_block_keys());
  grpc::ClientContext context;
  v1::ExistsResponse response;
  const absl::Status status = FromGrpc(fuzz.raw().Exists(&context, request, &response));
  FuzzService::ExpectCanonical(status);
  if (status.ok() && response.stored_size() != request.block_keys_size()) std::abort();
}

// What is stored is leased: nothing may go.
void Delete(FuzzService& fuzz, absl::string_view bytes) {
  v1::DeleteRequest request;
  if (!Parse(bytes, request)) return;
  MendKeys(fuzz, request.mutable_block_keys());
  grpc::ClientContext context;
  v1::DeleteResponse response;
  const absl::Status status = FromGrpc(fuzz.raw().Delete(&context, request, &response));
  FuzzService::ExpectCanonical(status);
  if (response.removed_segments() != 0) std::abort();
}

void Explain(FuzzService& fuzz, absl::string_view bytes) {
  v1::ExplainMissRequest request;
  if (!Parse(bytes, request)) return;
  if (request.has_namespace_()) fuzz.MendNamespace(request.mutable_namespace_());
  FuzzService::ExpectCanonical(fuzz.service().client().ExplainMiss(request, Soon()).status());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  FuzzService& fuzz = FuzzService::Get();
  const absl::string_view bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  constexpr void (*kCalls[])(FuzzService&, absl::string_view) = {Get,    Match,  Pin,
                                                                 Exists, Delete, Explain};
  kCalls[data[0] % std::size(kCalls)](fuzz, bytes);
  fuzz.ExpectNothingLeft();
  return 0;
}
