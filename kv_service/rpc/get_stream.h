// The server's end of GetSegments: a plan, then blobs layer by layer.

#pragma once

#include "absl/status/status.h"
#include "fourierkv/v1/kv_cache_service.grpc.pb.h"
#include "kv_service/core/work_gate.h"
#include "kv_service/rpc/call_watch.h"
#include "kv_service/rpc/service_core.h"
#include "kv_service/rpc/tenant_view.h"

namespace fourierkv {

inline constexpr int kMaxSegmentsPerGet = 16384;

absl::Status ServeGet(ServiceCore& core, const TenantView& view,
                      const v1::GetSegmentsRequest& request,
                      grpc::ServerWriter<v1::GetSegmentsResponse>& writer, CallWatch::Call& call,
                      WorkGate::Call& place);

}  // namespace fourierkv
