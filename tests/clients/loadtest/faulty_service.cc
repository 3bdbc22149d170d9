#include "tests/clients/loadtest/faulty_service.h"

#include <grpcpp/grpcpp.h>

#include <cstdlib>
#include <thread>

#include "absl/strings/str_cat.h"

namespace fourierkv::loadtest {

FaultyService::FaultyService(const std::string& address) {
  if (!address.empty()) {
    real_ = v1::KvCacheService::NewStub(
        grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  }
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.SetMaxReceiveMessageSize(16 << 20);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) std::abort();
  address_ = absl::StrCat("127.0.0.1:", port);
}

FaultyService::~FaultyService() {
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

grpc::Status FaultyService::MatchPrefix(grpc::ServerContext* context,
                                        const v1::MatchPrefixRequest* request,
                                        v1::MatchPrefixResponse* response) {
  const int now = ++now_;
  for (int most = most_; now > most && !most_.compare_exchange_weak(most, now);) continue;
  grpc::Status status;
  if (on_match) status = on_match(*context);
  if (status.ok() && real_ != nullptr) {
    grpc::ClientContext forward;
    status = real_->MatchPrefix(&forward, *request, response);
  }
  --now_;
  return status;
}

grpc::Status FaultyService::PutSegments(
    grpc::ServerContext* /*context*/,
    grpc::ServerReaderWriter<v1::PutSegmentsResponse, v1::PutSegmentsRequest>* stream) {
  if (real_ == nullptr) return {grpc::StatusCode::UNIMPLEMENTED, "no puts here"};
  grpc::ClientContext forward;
  const auto real = real_->PutSegments(&forward);
  std::thread answers([&] {
    v1::PutSegmentsResponse response;
    while (real->Read(&response)) stream->Write(response);
  });
  v1::PutSegmentsRequest request;
  while (stream->Read(&request)) real->Write(request);
  real->WritesDone();
  answers.join();
  return real->Finish();
}

grpc::Status FaultyService::GetSegments(grpc::ServerContext* /*context*/,
                                        const v1::GetSegmentsRequest* request,
                                        grpc::ServerWriter<v1::GetSegmentsResponse>* writer) {
  if (real_ == nullptr) return {grpc::StatusCode::UNIMPLEMENTED, "no gets here"};
  grpc::ClientContext forward;
  const auto real = real_->GetSegments(&forward, *request);
  v1::GetSegmentsResponse response;
  while (real->Read(&response)) {
    if (on_get) on_get(response);
    if (!writer->Write(response)) break;
  }
  return real->Finish();
}

}  // namespace fourierkv::loadtest
