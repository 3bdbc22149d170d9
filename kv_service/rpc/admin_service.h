// fourierkv.v1.AdminService over a ServiceCore.

#pragma once

#include <functional>
#include <utility>

#include "fourierkv/v1/admin_service.grpc.pb.h"
#include "kv_service/rpc/call_watch.h"
#include "kv_service/rpc/service_core.h"

namespace fourierkv {

// Thread safe. `core` must outlive it.
class AdminServiceImpl final : public v1::AdminService::Service {
 public:
  // `drain` begins to stop the server, and returns at once; null: Drain is refused.
  explicit AdminServiceImpl(ServiceCore* core, std::function<void()> drain = nullptr)
      : core_(core), drain_(std::move(drain)), watch_(core->limits.stall, &core->overrun) {}

  grpc::Status GetStats(grpc::ServerContext* context, const v1::GetStatsRequest* request,
                        v1::GetStatsResponse* response) override;
  grpc::Status ListSegments(grpc::ServerContext* context, const v1::ListSegmentsRequest* request,
                            grpc::ServerWriter<v1::ListSegmentsResponse>* writer) override;
  grpc::Status ExplainMiss(grpc::ServerContext* context, const v1::ExplainMissRequest* request,
                           v1::ExplainMissResponse* response) override;
  grpc::Status GetBuildInfo(grpc::ServerContext* context, const v1::GetBuildInfoRequest* request,
                            v1::GetBuildInfoResponse* response) override;
  grpc::Status ListTenants(grpc::ServerContext* context, const v1::ListTenantsRequest* request,
                           v1::ListTenantsResponse* response) override;
  grpc::Status VerifySegments(grpc::ServerContext* context,
                              const v1::VerifySegmentsRequest* request,
                              v1::VerifySegmentsResponse* response) override;
  grpc::Status Drain(grpc::ServerContext* context, const v1::DrainRequest* request,
                     v1::DrainResponse* response) override;

 private:
  ServiceCore* core_;
  const std::function<void()> drain_;
  CallWatch watch_;
};

}  // namespace fourierkv
