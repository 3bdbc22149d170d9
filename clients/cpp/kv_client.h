// C++ client of the KV service.

#pragma once

#include <grpcpp/channel.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "clients/cpp/blob_assembler.h"
#include "clients/cpp/channel.h"
#include "compute/base/content_hash.h"
#include "compute/base/geometry.h"
#include "compute/codec/profile.h"
#include "fourierkv/v1/admin_service.grpc.pb.h"
#include "fourierkv/v1/kv_cache_service.grpc.pb.h"
#include "fourierkv/v1/profile_service.grpc.pb.h"

namespace fourierkv {

// One put: header, parts in any order, commit. Destroying it before Commit aborts the put.
// Not thread safe.
class PutStream {
 public:
  ~PutStream();
  PutStream(const PutStream&) = delete;
  PutStream& operator=(const PutStream&) = delete;

  // Keys of the put's segments, in order.
  const std::vector<Digest>& keys() const { return keys_; }
  bool needs(uint64_t segment_index) const;
  uint64_t payload_bytes_sent() const { return payload_bytes_sent_; }

  // Sends K or V of one layer of a needed segment, in checksummed chunks of at most 1 MiB. An error
  // is the one that ended the put on the server.
  absl::Status Send(uint64_t segment_index, int layer, Part part, std::span<const std::byte> bytes);

  absl::StatusOr<v1::PutCommitted> Commit();

 private:
  friend class KvClient;
  PutStream() = default;
  absl::Status Fail();  // the status the server ended the stream with

  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::PutSegmentsRequest, v1::PutSegmentsResponse>>
      stream_;
  std::vector<Digest> keys_;
  std::vector<uint64_t> needed_;  // increasing
  uint64_t payload_bytes_sent_ = 0;
  bool finished_ = false;
};

// Thread safe. Every call has a deadline; none blocks beyond it.
class KvClient {
 public:
  // Connects to `address`. Errors are those of ConnectChannel.
  static absl::StatusOr<std::unique_ptr<KvClient>> Connect(const std::string& address,
                                                           absl::Duration timeout,
                                                           const ChannelOptions& options = {});

  absl::StatusOr<v1::MatchPrefixResponse> MatchPrefix(const v1::MatchPrefixRequest& request,
                                                      absl::Time deadline);

  // Opens a put; returns once the server has said which segments it needs.
  absl::StatusOr<std::unique_ptr<PutStream>> Put(const v1::PutHeader& header, absl::Time deadline);

  // Fetches segments layer by layer. `on_plan` is called once, before any blob; `on_blob` for each
  // blob as it is complete, layers in order. A non-OK status from either ends the fetch and is
  // returned. DataLoss if a blob is damaged, not one that was asked for, or of a larger error than
  // the request's max_relative_error.
  absl::Status Get(const v1::GetSegmentsRequest& request, absl::Time deadline,
                   const std::function<absl::Status(const v1::GetPlan&)>& on_plan,
                   const std::function<absl::Status(FetchedBlob)>& on_blob);

  // A lease on all of `keys`, to be ended with Release.
  absl::StatusOr<v1::PinResponse> Pin(const std::vector<Digest>& keys, absl::Duration ttl,
                                      absl::Time deadline);
  absl::Status Release(uint64_t lease_id, absl::Time deadline);
  absl::StatusOr<std::vector<bool>> Exists(const std::vector<Digest>& keys, absl::Time deadline);
  absl::StatusOr<v1::DeleteResponse> Delete(const std::vector<Digest>& keys, absl::Time deadline);

  absl::StatusOr<Digest> PutProfile(const CodecProfile& profile, absl::Time deadline);
  absl::StatusOr<CodecProfile> GetProfile(const Digest& id, absl::Time deadline);
  absl::StatusOr<v1::ListProfilesResponse> ListProfiles(absl::Time deadline);

  absl::StatusOr<v1::GetStatsResponse> Stats(absl::Time deadline);
  absl::StatusOr<std::vector<v1::StoredSegment>> ListSegments(uint32_t limit, absl::Time deadline);
  absl::StatusOr<v1::ExplainMissResponse> ExplainMiss(const v1::ExplainMissRequest& request,
                                                      absl::Time deadline);
  absl::StatusOr<v1::GetBuildInfoResponse> BuildInfo(absl::Time deadline);
  absl::StatusOr<v1::ListTenantsResponse> ListTenants(absl::Time deadline);
  absl::StatusOr<v1::VerifySegmentsResponse> VerifySegments(absl::Time deadline);
  // Begins to stop the server.
  absl::Status Drain(absl::Time deadline);

 private:
  explicit KvClient(const std::shared_ptr<grpc::Channel>& channel);

  std::unique_ptr<v1::KvCacheService::Stub> cache_;
  std::unique_ptr<v1::ProfileService::Stub> profiles_;
  std::unique_ptr<v1::AdminService::Stub> admin_;
};

}  // namespace fourierkv
