#include "tests/reliability/slow_readers.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "absl/time/clock.h"
#include "proto/support/grpc_status.h"
#include "tests/kv_service/rpc/service_fixture.h"
#include "tests/reliability/traffic.h"

namespace fourierkv {
namespace {

constexpr int kSequences = 250;  // 16 MB in all, far more than sockets and windows take

// Keys of what was put, as one fetch.
v1::GetSegmentsRequest PutWhatIsRead(const std::string& server) {
  auto client = KvClient::Connect(server, absl::Seconds(20));
  if (!client.ok() || !(*client)->PutProfile(SmallProfile(), Soon()).ok()) std::abort();
  std::vector<std::string> keys;
  for (uint32_t i = 0; i < kSequences; ++i) {
    const Sequence sequence(0x51000000 + i, 4 * kS);
    const auto ns = SmallWireNamespace();
    if (!PutSequence(**client, MakePutHeader(ns, sequence), sequence).ok()) std::abort();
    const auto own = KeysOf(ns, sequence);
    keys.insert(keys.end(), own.begin(), own.end());
  }
  return MakeGet(keys, {v1::SEGMENT_FORM_EXACT});
}

}  // namespace

SlowReaders::SlowReaders(const std::string& server, int count, absl::Duration pause)
    : pause_(pause) {
  const v1::GetSegmentsRequest request = PutWhatIsRead(server);
  for (int i = 0; i < count; ++i) {
    // Not all in the same millisecond: they stand for clients that know nothing of each other.
    threads_.emplace_back([this, server, request, first = pause * i / count] {
      // A connection each: what is not read on one of them holds up no other.
      grpc::ChannelArguments own;
      own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
      const auto stub = v1::KvCacheService::NewStub(
          grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), own));
      Pause(first);
      while (!stopping_) Read(*stub, request);
    });
  }
}

SlowReaders::~SlowReaders() {
  stopping_ = true;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (grpc::ClientContext* context : running_) context->TryCancel();
  }
  for (std::thread& thread : threads_) thread.join();
}

std::string SlowReaders::not_retryable() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return not_retryable_;
}

void SlowReaders::Pause(absl::Duration pause) const {
  const absl::Time end = absl::Now() + pause;
  for (absl::Duration left = pause; left > absl::ZeroDuration() && !stopping_;) {
    absl::SleepFor(std::min(left, absl::Milliseconds(20)));
    left = end - absl::Now();
  }
}

void SlowReaders::Read(v1::KvCacheService::Stub& stub, const v1::GetSegmentsRequest& request) {
  grpc::ClientContext context;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_) return;
    running_.push_back(&context);
  }
  const auto reader = stub.GetSegments(&context, request);
  v1::GetSegmentsResponse response;
  while (reader->Read(&response)) {
    bytes_read_ += static_cast<int64_t>(response.ByteSizeLong());
    Pause(pause_);
  }
  const absl::Status status = FromGrpc(reader->Finish());
  std::lock_guard<std::mutex> lock(mutex_);
  std::erase(running_, &context);
  if (stopping_ || status.ok()) return;
  if (!IsRetryable(status.code()) && not_retryable_.empty()) not_retryable_ = status.ToString();
}

}  // namespace fourierkv
