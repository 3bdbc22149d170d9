// fourierkv.v1.EventService over a ServiceCore.

#pragma once

#include <atomic>

#include "fourierkv/v1/event_service.grpc.pb.h"
#include "kv_service/rpc/call_watch.h"
#include "kv_service/rpc/service_core.h"

namespace fourierkv {

// Every follower is served by a thread that reads the log at the follower's pace; the store never
// waits for one, and holds nothing for one. Thread safe. `core` must outlive it.
class EventServiceImpl final : public v1::EventService::Service {
 public:
  explicit EventServiceImpl(ServiceCore* core) : core_(core), watch_(core->limits.stall) {}

  grpc::Status Subscribe(grpc::ServerContext* context, const v1::SubscribeRequest* request,
                         grpc::ServerWriter<v1::SubscribeResponse>* writer) override;

  // Ends all subscriptions, now and later: a server that drains does not wait for them.
  void Drain() { core_->events.ShutDown(); }

 private:
  absl::Status Serve(grpc::ServerContext& context, const v1::SubscribeRequest& request,
                     grpc::ServerWriter<v1::SubscribeResponse>& writer, CallWatch::Call& call);

  ServiceCore* core_;
  CallWatch watch_;
  std::atomic<int> followers_{0};
};

}  // namespace fourierkv
