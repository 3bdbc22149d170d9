#include "clients/cpp/kv_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/convert.h"
#include "proto/support/grpc_status.h"

namespace fourierkv {
namespace {

constexpr size_t kChunkBytes = 1 << 20;

// Nobody on this side cancels a call and then waits for it. gRPC itself does that to calls that
// come to a server which has just begun to stop: they were not begun.
absl::Status Failure(const grpc::Status& status) {
  if (status.error_code() != grpc::StatusCode::CANCELLED) return FromGrpc(status);
  return absl::UnavailableError(
      absl::StrCat("the server ended the call before it was answered; try again (",
                   status.error_message(), ")"));
}

template <typename Request, typename Response, typename Stub>
absl::StatusOr<Response> Call(Stub* stub,
                              grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                           Response*),
                              const Request& request, absl::Time deadline) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  Response response;
  const grpc::Status status = (stub->*method)(&context, request, &response);
  if (!status.ok()) return Failure(status);
  return response;
}

}  // namespace

PutStream::~PutStream() {
  if (finished_ || stream_ == nullptr) return;
  context_.TryCancel();
  stream_->Finish();
}

bool PutStream::needs(uint64_t segment_index) const {
  return std::binary_search(needed_.begin(), needed_.end(), segment_index);
}

absl::Status PutStream::Fail() {
  finished_ = true;
  const grpc::Status status = stream_->Finish();
  if (status.ok()) return absl::InternalError("the server ended the put without an answer");
  return Failure(status);
}

absl::Status PutStream::Send(uint64_t segment_index, int layer, Part part,
                             std::span<const std::byte> bytes) {
  if (finished_) return absl::FailedPreconditionError("the put has ended");
  v1::PutSegmentsRequest request;
  for (size_t offset = 0; offset < bytes.size(); offset += kChunkBytes) {
    const auto piece = bytes.subspan(offset, std::min(kChunkBytes, bytes.size() - offset));
    v1::PutChunk* chunk = request.mutable_chunk();
    chunk->set_segment_index(segment_index);
    chunk->set_layer(layer);
    chunk->set_part(ToProto(part));
    chunk->set_offset(offset);
    chunk->set_data(piece.data(), piece.size());
    chunk->set_checksum(Checksum(piece));
    chunk->set_part_bytes(bytes.size());
    if (!stream_->Write(request)) return Fail();
    payload_bytes_sent_ += piece.size();
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::PutCommitted> PutStream::Commit() {
  if (finished_) return absl::FailedPreconditionError("the put has ended");
  v1::PutSegmentsRequest request;
  request.mutable_commit();
  stream_->Write(request);
  stream_->WritesDone();
  v1::PutSegmentsResponse response;
  if (!stream_->Read(&response) || !response.has_committed()) return Fail();
  finished_ = true;
  const grpc::Status status = stream_->Finish();
  if (!status.ok()) return Failure(status);
  return response.committed();
}

KvClient::KvClient(const std::shared_ptr<grpc::Channel>& channel)
    : cache_(v1::KvCacheService::NewStub(channel)),
      profiles_(v1::ProfileService::NewStub(channel)),
      admin_(v1::AdminService::NewStub(channel)) {}

absl::StatusOr<std::unique_ptr<KvClient>> KvClient::Connect(const std::string& address,
                                                            absl::Duration timeout,
                                                            const ChannelOptions& options) {
  absl::StatusOr<std::shared_ptr<grpc::Channel>> channel =
      ConnectChannel(address, timeout, options);
  if (!channel.ok()) return channel.status();
  return std::unique_ptr<KvClient>(new KvClient(*channel));
}

absl::StatusOr<v1::MatchPrefixResponse> KvClient::MatchPrefix(const v1::MatchPrefixRequest& request,
                                                              absl::Time deadline) {
  return Call(cache_.get(), &v1::KvCacheService::Stub::MatchPrefix, request, deadline);
}

absl::StatusOr<std::unique_ptr<PutStream>> KvClient::Put(const v1::PutHeader& header,
                                                         absl::Time deadline) {
  std::unique_ptr<PutStream> put(new PutStream());
  put->context_.set_deadline(absl::ToChronoTime(deadline));
  put->stream_ = cache_->PutSegments(&put->context_);
  v1::PutSegmentsRequest request;
  *request.mutable_header() = header;
  v1::PutSegmentsResponse response;
  if (!put->stream_->Write(request) || !put->stream_->Read(&response) || !response.has_accepted()) {
    return put->Fail();
  }
  for (const std::string& raw : response.accepted().block_keys()) {
    absl::StatusOr<Digest> key = Digest::FromRaw(raw, "accepted.block_keys");
    if (!key.ok()) return key.status();
    put->keys_.push_back(*key);
  }
  put->needed_.assign(response.accepted().needed_segments().begin(),
                      response.accepted().needed_segments().end());
  std::sort(put->needed_.begin(), put->needed_.end());
  return put;
}

absl::Status KvClient::Get(const v1::GetSegmentsRequest& request, absl::Time deadline,
                           const std::function<absl::Status(const v1::GetPlan&)>& on_plan,
                           const std::function<absl::Status(FetchedBlob)>& on_blob) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  auto reader = cache_->GetSegments(&context, request);
  BlobAssembler assembler(request);
  const auto consume = [&](const v1::GetSegmentsResponse& response) -> absl::Status {
    if (response.has_plan()) {
      assembler.Expect(response.plan());
      return on_plan(response.plan());
    }
    for (const v1::BlobPiece& piece : response.batch().pieces()) {
      absl::StatusOr<std::optional<FetchedBlob>> blob = assembler.Add(piece);
      if (!blob.ok()) return blob.status();
      if (!blob->has_value()) continue;
      if (absl::Status s = on_blob(*std::move(*blob)); !s.ok()) return s;
    }
    return absl::OkStatus();
  };
  v1::GetSegmentsResponse response;
  while (reader->Read(&response)) {
    if (absl::Status s = consume(response); !s.ok()) {
      context.TryCancel();
      reader->Finish();
      return s;
    }
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return Failure(status);
  if (!assembler.empty()) return absl::DataLossError("the fetch ended inside a blob");
  return absl::OkStatus();
}

absl::StatusOr<v1::PinResponse> KvClient::Pin(const std::vector<Digest>& keys, absl::Duration ttl,
                                              absl::Time deadline) {
  v1::PinRequest request;
  for (const Digest& key : keys) request.add_block_keys(key.ToString());
  *request.mutable_ttl() = ToProto(ttl);
  return Call(cache_.get(), &v1::KvCacheService::Stub::Pin, request, deadline);
}

absl::Status KvClient::Release(uint64_t lease_id, absl::Time deadline) {
  v1::ReleaseRequest request;
  request.set_lease_id(lease_id);
  return Call(cache_.get(), &v1::KvCacheService::Stub::Release, request, deadline).status();
}

absl::StatusOr<std::vector<bool>> KvClient::Exists(const std::vector<Digest>& keys,
                                                   absl::Time deadline) {
  v1::ExistsRequest request;
  for (const Digest& key : keys) request.add_block_keys(key.ToString());
  absl::StatusOr<v1::ExistsResponse> response =
      Call(cache_.get(), &v1::KvCacheService::Stub::Exists, request, deadline);
  if (!response.ok()) return response.status();
  return std::vector<bool>(response->stored().begin(), response->stored().end());
}

absl::StatusOr<v1::DeleteResponse> KvClient::Delete(const std::vector<Digest>& keys,
                                                    absl::Time deadline) {
  v1::DeleteRequest request;
  for (const Digest& key : keys) request.add_block_keys(key.ToString());
  return Call(cache_.get(), &v1::KvCacheService::Stub::Delete, request, deadline);
}

absl::StatusOr<Digest> KvClient::PutProfile(const CodecProfile& profile, absl::Time deadline) {
  v1::PutProfileRequest request;
  request.set_profile_json(profile.ToJson());
  absl::StatusOr<v1::PutProfileResponse> response =
      Call(profiles_.get(), &v1::ProfileService::Stub::PutProfile, request, deadline);
  if (!response.ok()) return response.status();
  return Digest::FromRaw(response->profile_id(), "profile_id");
}

absl::StatusOr<CodecProfile> KvClient::GetProfile(const Digest& id, absl::Time deadline) {
  v1::GetProfileRequest request;
  request.set_profile_id(id.ToString());
  absl::StatusOr<v1::GetProfileResponse> response =
      Call(profiles_.get(), &v1::ProfileService::Stub::GetProfile, request, deadline);
  if (!response.ok()) return response.status();
  return CodecProfile::FromJson(response->profile_json());
}

absl::StatusOr<v1::ListProfilesResponse> KvClient::ListProfiles(absl::Time deadline) {
  return Call(profiles_.get(), &v1::ProfileService::Stub::ListProfiles, v1::ListProfilesRequest(),
              deadline);
}

absl::StatusOr<v1::GetBuildInfoResponse> KvClient::BuildInfo(absl::Time deadline) {
  return Call(admin_.get(), &v1::AdminService::Stub::GetBuildInfo, v1::GetBuildInfoRequest(),
              deadline);
}

absl::StatusOr<v1::ListTenantsResponse> KvClient::ListTenants(absl::Time deadline) {
  return Call(admin_.get(), &v1::AdminService::Stub::ListTenants, v1::ListTenantsRequest(),
              deadline);
}

absl::StatusOr<v1::VerifySegmentsResponse> KvClient::VerifySegments(absl::Time deadline) {
  return Call(admin_.get(), &v1::AdminService::Stub::VerifySegments, v1::VerifySegmentsRequest(),
              deadline);
}

absl::Status KvClient::Drain(absl::Time deadline) {
  return Call(admin_.get(), &v1::AdminService::Stub::Drain, v1::DrainRequest(), deadline).status();
}

absl::StatusOr<v1::GetStatsResponse> KvClient::Stats(absl::Time deadline) {
  return Call(admin_.get(), &v1::AdminService::Stub::GetStats, v1::GetStatsRequest(), deadline);
}

absl::StatusOr<std::vector<v1::StoredSegment>> KvClient::ListSegments(uint32_t limit,
                                                                      absl::Time deadline) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  v1::ListSegmentsRequest request;
  request.set_limit(limit);
  auto reader = admin_->ListSegments(&context, request);
  std::vector<v1::StoredSegment> segments;
  v1::ListSegmentsResponse response;
  while (reader->Read(&response)) {
    for (v1::StoredSegment& segment : *response.mutable_segments()) {
      segments.push_back(std::move(segment));
    }
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return Failure(status);
  return segments;
}

absl::StatusOr<v1::ExplainMissResponse> KvClient::ExplainMiss(const v1::ExplainMissRequest& request,
                                                              absl::Time deadline) {
  return Call(admin_.get(), &v1::AdminService::Stub::ExplainMiss, request, deadline);
}

}  // namespace fourierkv
