// The server's end of PutSegments: header, accepted, chunks, commit, committed.

#pragma once

#include "absl/status/status.h"
#include "fourierkv/v1/kv_cache_service.grpc.pb.h"
#include "kv_service/core/work_gate.h"
#include "kv_service/rpc/call_watch.h"
#include "kv_service/rpc/service_core.h"
#include "kv_service/rpc/tenant_view.h"

namespace fourierkv {

using PutServerStream = grpc::ServerReaderWriter<v1::PutSegmentsResponse, v1::PutSegmentsRequest>;

// Runs one put to its end. A stream that breaks off before the commit leaves nothing behind.
absl::Status ServePut(ServiceCore& core, const TenantView& view, PutServerStream& stream,
                      CallWatch::Call& call, WorkGate::Call& place);

}  // namespace fourierkv
