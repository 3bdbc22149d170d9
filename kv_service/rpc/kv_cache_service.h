// fourierkv.v1.KvCacheService over a ServiceCore. Statuses: see the .proto file.

#pragma once

#include "fourierkv/v1/kv_cache_service.grpc.pb.h"
#include "kv_service/rpc/call_watch.h"
#include "kv_service/rpc/service_core.h"

namespace fourierkv {

// Thread safe. `core` must outlive it.
class KvCacheServiceImpl final : public v1::KvCacheService::Service {
 public:
  explicit KvCacheServiceImpl(ServiceCore* core)
      : core_(core), watch_(core->limits.stall, &core->overrun) {}

  grpc::Status MatchPrefix(grpc::ServerContext* context, const v1::MatchPrefixRequest* request,
                           v1::MatchPrefixResponse* response) override;
  grpc::Status PutSegments(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::PutSegmentsResponse, v1::PutSegmentsRequest>* stream) override;
  grpc::Status GetSegments(grpc::ServerContext* context, const v1::GetSegmentsRequest* request,
                           grpc::ServerWriter<v1::GetSegmentsResponse>* writer) override;
  grpc::Status Pin(grpc::ServerContext* context, const v1::PinRequest* request,
                   v1::PinResponse* response) override;
  grpc::Status Release(grpc::ServerContext* context, const v1::ReleaseRequest* request,
                       v1::ReleaseResponse* response) override;
  grpc::Status Exists(grpc::ServerContext* context, const v1::ExistsRequest* request,
                      v1::ExistsResponse* response) override;
  grpc::Status Delete(grpc::ServerContext* context, const v1::DeleteRequest* request,
                      v1::DeleteResponse* response) override;

 private:
  ServiceCore* core_;
  CallWatch watch_;
};

}  // namespace fourierkv
