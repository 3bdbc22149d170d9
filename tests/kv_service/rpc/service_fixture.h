// A KV service in this process that is spoken to over real gRPC, and small sequences to store in
// it.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "clients/cpp/kv_client.h"
#include "kv_service/rpc/service_core.h"
#include "tests/kv_service/core/core_fixtures.h"

namespace grpc {
class Channel;
class Server;
}  // namespace grpc

namespace fourierkv {

// No call of a test takes this long.
inline absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

// Serves from construction to destruction.
class TestService {
 public:
  // `listen` as gRPC takes it; a free loopback port by default.
  explicit TestService(const ServiceLimits& limits = {}, const std::string& listen = "127.0.0.1:0");
  ~TestService();
  TestService(const TestService&) = delete;
  TestService& operator=(const TestService&) = delete;

  // As after a crash: another service, empty, at the same address. For addresses with a fixed port
  // or path.
  void Restart();
  // Nobody answers at the address until Restart.
  void Stop();

  const std::string& address() const { return address_; }
  ServiceCore& core() { return *core_; }
  KvClient& client() { return *client_; }
  // For what the client library does not let a caller do.
  v1::KvCacheService::Stub& raw() { return *raw_; }

  v1::GetStatsResponse Stats();
  // Budget bytes in use once no put is open any more.
  uint64_t UsedBytes();

 private:
  struct Services;
  void Start();

  const ServiceLimits limits_;
  const std::string listen_;
  std::string address_;
  std::unique_ptr<ServiceCore> core_;
  std::unique_ptr<Services> services_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<KvClient> client_;
  std::unique_ptr<v1::KvCacheService::Stub> raw_;
};

// Half of the channels spectral, for the small model of the core's fixtures.
CodecProfile SmallProfile(const std::string& name = "small");

// The small model's namespace on the wire, with the profile unless `with_profile` is false.
v1::CacheNamespace SmallWireNamespace(bool with_profile = true);

// Tokens, and the KV tensors that a model would compute for them: the same for the same seed.
class Sequence {
 public:
  Sequence(uint32_t seed, int64_t tokens);
  // The first `shared` tokens of `prefix`, then its own; KV of shared full segments is the same.
  Sequence(const Sequence& prefix, int64_t shared, uint32_t seed, int64_t tokens);

  const std::vector<uint32_t>& tokens() const { return tokens_; }
  int64_t segments() const { return (static_cast<int64_t>(tokens_.size()) + kS - 1) / kS; }
  int SegmentTokens(int64_t segment) const;
  // [kv_heads][tokens of the segment][head_dim]
  std::vector<uint16_t> PartOf(int64_t segment, int layer, Part part) const;

 private:
  std::vector<uint32_t> tokens_;
  std::vector<uint32_t> seeds_;  // per segment
};

// Of segments [first, end) of `sequence`, dense; `parent` if first > 0.
v1::PutHeader MakePutHeader(const v1::CacheNamespace& ns, const Sequence& sequence,
                            int64_t keep_exact_from = 0, int64_t first = 0,
                            const std::string& parent = "", int64_t end = -1);

// Sends what the service asks for, and commits.
absl::StatusOr<v1::PutCommitted> PutSequence(KvClient& client, const v1::PutHeader& header,
                                             const Sequence& sequence);

// Raw keys of the whole sequence, the tail's last.
std::vector<std::string> KeysOf(const v1::CacheNamespace& ns, const Sequence& sequence);

struct Fetched {
  v1::GetPlan plan;
  std::map<std::tuple<int, int, Part>, FetchedBlob> blobs;  // by request, layer, part

  std::vector<uint16_t> Values(int request, int layer, Part part) const;  // of EXACT and DENSE
};

v1::GetSegmentsRequest MakeGet(const std::vector<std::string>& keys,
                               const std::vector<v1::SegmentForm>& forms);
absl::StatusOr<Fetched> Fetch(KvClient& client, const v1::GetSegmentsRequest& request);

}  // namespace fourierkv
