// fourierkv.v1.DecodeService over RunDecode.

#pragma once

#include "clients/worker/admission.h"
#include "clients/worker/worker_runtime.h"
#include "fourierkv/v1/decode_service.grpc.pb.h"

namespace fourierkv {

// Thread safe. `runtime` must outlive it.
class DecodeServiceImpl final : public v1::DecodeService::Service {
 public:
  DecodeServiceImpl(const WorkerRuntime* runtime, int max_requests)
      : runtime_(runtime), admission_(max_requests) {}

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override;

 private:
  absl::Status Run(grpc::ServerContext& context, const v1::GenerateRequest& request,
                   grpc::ServerWriter<v1::GenerateResponse>& writer);

  const WorkerRuntime* runtime_;
  Admission admission_;
};

}  // namespace fourierkv
