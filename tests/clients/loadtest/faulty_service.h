// A KV service in this process that does what a test wants it to do wrong.

#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "fourierkv/v1/kv_cache_service.grpc.pb.h"

namespace grpc {
class Server;
}

namespace fourierkv::loadtest {

// Stands before a real service (or none, then matches find nothing and other calls fail). Hooks are
// set before the first call and may be called by many threads.
class FaultyService final : public v1::KvCacheService::Service {
 public:
  // `address` of the real service; "" for none.
  explicit FaultyService(const std::string& address = "");
  ~FaultyService() override;

  const std::string& address() const { return address_; }
  int most_at_once() const { return most_; }

  std::function<grpc::Status(grpc::ServerContext&)> on_match;
  std::function<void(v1::GetSegmentsResponse&)> on_get;

  grpc::Status MatchPrefix(grpc::ServerContext* context, const v1::MatchPrefixRequest* request,
                           v1::MatchPrefixResponse* response) override;
  grpc::Status PutSegments(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::PutSegmentsResponse, v1::PutSegmentsRequest>* stream) override;
  grpc::Status GetSegments(grpc::ServerContext* context, const v1::GetSegmentsRequest* request,
                           grpc::ServerWriter<v1::GetSegmentsResponse>* writer) override;

 private:
  std::unique_ptr<v1::KvCacheService::Stub> real_;
  std::string address_;
  std::atomic<int> now_{0};
  std::atomic<int> most_{0};
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace fourierkv::loadtest
