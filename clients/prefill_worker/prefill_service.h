// fourierkv.v1.PrefillService over RunPrefill.

#pragma once

#include "clients/worker/admission.h"
#include "clients/worker/worker_runtime.h"
#include "fourierkv/v1/prefill_service.grpc.pb.h"

namespace fourierkv {

// Thread safe. `runtime` must outlive it.
class PrefillServiceImpl final : public v1::PrefillService::Service {
 public:
  PrefillServiceImpl(const WorkerRuntime* runtime, int max_requests)
      : runtime_(runtime), admission_(max_requests) {}

  grpc::Status Prefill(grpc::ServerContext* context, const v1::PrefillRequest* request,
                       grpc::ServerWriter<v1::PrefillResponse>* writer) override;

 private:
  absl::Status Run(grpc::ServerContext& context, const v1::PrefillRequest& request,
                   grpc::ServerWriter<v1::PrefillResponse>& writer);

  const WorkerRuntime* runtime_;
  Admission admission_;
};

}  // namespace fourierkv
