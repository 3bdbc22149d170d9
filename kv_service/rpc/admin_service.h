// fourierkv.v1.AdminService over a ServiceCore.

#pragma once

#include "fourierkv/v1/admin_service.grpc.pb.h"
#include "kv_service/rpc/service_core.h"

namespace fourierkv {

// Thread safe. `core` must outlive it.
class AdminServiceImpl final : public v1::AdminService::Service {
 public:
  explicit AdminServiceImpl(ServiceCore* core) : core_(core) {}

  grpc::Status GetStats(grpc::ServerContext* context, const v1::GetStatsRequest* request,
                        v1::GetStatsResponse* response) override;
  grpc::Status ListSegments(grpc::ServerContext* context, const v1::ListSegmentsRequest* request,
                            grpc::ServerWriter<v1::ListSegmentsResponse>* writer) override;
  grpc::Status ExplainMiss(grpc::ServerContext* context, const v1::ExplainMissRequest* request,
                           v1::ExplainMissResponse* response) override;

 private:
  ServiceCore* core_;
};

}  // namespace fourierkv
