// Operations by themselves.

#include "clients/loadtest/operation.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/synchronization/notification.h"
#include "clients/loadtest/target.h"
#include "tests/clients/loadtest/faulty_service.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv::loadtest {
namespace {

using Make = std::function<std::shared_ptr<Operation>(const OperationSetup&, Stub*, SequenceId)>;

class OperationTest : public testing::Test {
 protected:
  // A service may go, and another run come: each has a target of its own.
  std::unique_ptr<Target> Connect(const std::string& address) {
    LoadOptions options;
    options.server = address;
    options.geometry = {.layers = 2, .kv_heads = 2, .head_dim = 16};
    options.fetch = SegmentForm::kExact;
    options.segment_tokens = 128;
    options.value_tokens = 300;
    auto target = Target::Connect(options);
    EXPECT_TRUE(target.ok()) << target.status();
    return target.ok() ? *std::move(target) : nullptr;
  }

  // Runs it to its end, and destroys it there, as those do who run many. What is left of it in that
  // moment shares the channel.
  absl::Status Run(Target& target, const std::string& address, const Make& make) {
    const std::shared_ptr<grpc::Channel> channel =
        grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
    const auto stub = v1::KvCacheService::NewStub(channel);
    const long shares = channel.use_count();  // NOLINT(google-runtime-int)
    std::shared_ptr<Operation> operation = make(target.setup(), stub.get(), {});
    absl::Status status;
    absl::Notification ended;
    Operation* const started = operation.get();
    started->Start([&](const OperationResult& result) {
      status = result.status;
      operation.reset();
      EXPECT_EQ(channel.use_count(), shares);
      ended.Notify();
    });
    ended.WaitForNotification();
    return status;
  }
};

// Else the last of it may go when the channel has gone, on a thread of gRPC that frees what it runs
// on by that.
TEST_F(OperationTest, WhenItIsDoneNothingOfItIsLeft) {
  TestService service;
  const std::string& address = service.address();
  const auto target = Connect(address);
  ASSERT_NE(target, nullptr);
  EXPECT_EQ(Run(*target, address, MakePut), absl::OkStatus());
  EXPECT_EQ(Run(*target, address, MakeMatch), absl::OkStatus());
  EXPECT_EQ(Run(*target, address, MakeGet), absl::OkStatus());
  const auto other = Connect(address);  // which has to ask for the keys first
  ASSERT_NE(other, nullptr);
  EXPECT_EQ(Run(*other, address, MakeGet), absl::OkStatus());
}

TEST_F(OperationTest, WhenItFailsNothingOfItIsLeftEither) {
  TestService real;
  const auto target = Connect(real.address());
  ASSERT_NE(target, nullptr);
  FaultyService service;
  service.on_match = [](grpc::ServerContext&) {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
  };
  for (const Make& make : {Make(MakePut), Make(MakeMatch), Make(MakeGet)}) {
    EXPECT_FALSE(Run(*target, service.address(), make).ok());
  }
}

}  // namespace
}  // namespace fourierkv::loadtest
