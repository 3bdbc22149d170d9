#include "tests/kv_service/rpc/service_fixture.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kv_service/rpc/admin_service.h"
#include "kv_service/rpc/event_service.h"
#include "kv_service/rpc/kv_cache_service.h"
#include "kv_service/rpc/namespace_convert.h"
#include "kv_service/rpc/profile_service.h"

namespace fourierkv {

struct TestService::Services {
  explicit Services(ServiceCore* core)
      : cache(core), profiles(&core->profiles), admin(core), events(core) {}
  KvCacheServiceImpl cache;
  ProfileServiceImpl profiles;
  AdminServiceImpl admin;
  EventServiceImpl events;
};

TestService::TestService(const ServiceLimits& limits, const std::string& listen)
    : limits_(limits), listen_(listen) {
  Start();
  auto client = KvClient::Connect(address_, absl::Seconds(10));
  if (!client.ok()) std::abort();
  client_ = *std::move(client);
  raw_ = v1::KvCacheService::NewStub(
      grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
}

TestService::~TestService() { Stop(); }

void TestService::Start() {
  core_ = std::make_unique<ServiceCore>(CreateCpuBackend(2), limits_);
  services_ = std::make_unique<Services>(core_.get());
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(listen_, grpc::InsecureServerCredentials(), &port);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(16 << 20);
  builder.RegisterService(&services_->cache);
  builder.RegisterService(&services_->profiles);
  builder.RegisterService(&services_->admin);
  builder.RegisterService(&services_->events);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) std::abort();
  address_ = absl::StartsWith(listen_, "unix:") ? listen_ : absl::StrCat("127.0.0.1:", port);
}

void TestService::Stop() {
  if (server_ == nullptr) return;
  services_->events.Drain();
  server_->Shutdown(absl::ToChronoTime(absl::Now()));
  server_->Wait();
  server_.reset();
  services_.reset();
  core_.reset();
}

void TestService::Restart() {
  Stop();
  Start();
}

v1::GetStatsResponse TestService::Stats() {
  auto stats = client_->Stats(Soon());
  if (!stats.ok()) std::abort();
  return *stats;
}

uint64_t TestService::UsedBytes() {
  for (const absl::Time deadline = Soon(); absl::Now() < deadline;) {
    const v1::GetStatsResponse stats = Stats();
    if (stats.open_puts() == 0) return stats.used_bytes();
    absl::SleepFor(absl::Milliseconds(2));
  }
  std::abort();  // a put never ended
}

CodecProfile SmallProfile(const std::string& name) {
  CodecProfile profile = UniformProfile(kSmall, 0.5, 0.5, 4, 8);
  profile.name = name;
  profile.segment_tokens = kS;
  return profile;
}

v1::CacheNamespace SmallWireNamespace(bool with_profile) {
  v1::CacheNamespace ns;
  ns.set_model_id("small");
  ns.set_model_revision("r1");
  ns.set_weight_dtype("bf16");
  ns.set_kv_dtype("bf16");
  ns.set_layers(kSmall.layers);
  ns.set_kv_heads(kSmall.kv_heads);
  ns.set_head_dim(kSmall.head_dim);
  ns.set_tp_size(1);
  ns.set_segment_tokens(kS);
  if (with_profile) ns.set_profile_id(SmallProfile().Id().ToString());
  return ns;
}

Sequence::Sequence(uint32_t seed, int64_t tokens) {
  std::mt19937 rng(seed);
  tokens_ = RandomTokens(rng, tokens);
  for (int64_t i = 0; i < segments(); ++i) seeds_.push_back(rng());
}

Sequence::Sequence(const Sequence& prefix, int64_t shared, uint32_t seed, int64_t tokens)
    : Sequence(seed, tokens) {
  std::copy_n(prefix.tokens_.begin(), shared, tokens_.begin());
  std::copy_n(prefix.seeds_.begin(), shared / kS, seeds_.begin());
}

int Sequence::SegmentTokens(int64_t segment) const {
  return static_cast<int>(
      std::min<int64_t>(kS, static_cast<int64_t>(tokens_.size()) - segment * kS));
}

std::vector<uint16_t> Sequence::PartOf(int64_t segment, int layer, Part part) const {
  std::mt19937 rng(seeds_[segment] + 2 * layer + static_cast<int>(part));
  return RandomPart(rng, kSmall, SegmentTokens(segment));
}

v1::PutHeader MakePutHeader(const v1::CacheNamespace& ns, const Sequence& sequence,
                            int64_t keep_exact_from, int64_t first, const std::string& parent,
                            int64_t end) {
  const auto& tokens = sequence.tokens();
  v1::PutHeader header;
  *header.mutable_namespace_() = ns;
  header.set_parent_key(parent);
  header.set_first_segment_index(first);
  header.mutable_token_ids()->Assign(tokens.begin() + first * kS,
                                     end < 0 ? tokens.end() : tokens.begin() + end * kS);
  header.set_payload_form(v1::SEGMENT_FORM_EXACT);
  header.set_keep_exact_from(keep_exact_from);
  return header;
}

absl::StatusOr<v1::PutCommitted> PutSequence(KvClient& client, const v1::PutHeader& header,
                                             const Sequence& sequence) {
  auto put = client.Put(header, Soon());
  if (!put.ok()) return put.status();
  for (int64_t i = 0; i < static_cast<int64_t>((*put)->keys().size()); ++i) {
    const int64_t segment = static_cast<int64_t>(header.first_segment_index()) + i;
    if (!(*put)->needs(segment)) continue;
    for (int layer = 0; layer < kSmall.layers; ++layer) {
      for (const Part part : kParts) {
        const auto values = sequence.PartOf(segment, layer, part);
        if (auto s = (*put)->Send(segment, layer, part, AsBytes(values)); !s.ok()) return s;
      }
    }
  }
  return (*put)->Commit();
}

std::vector<std::string> KeysOf(const v1::CacheNamespace& ns, const Sequence& sequence) {
  auto core_ns = FromProto(ns, "");
  if (!core_ns.ok()) std::abort();
  const KeyChain chain = ChainKeys(*core_ns, sequence.tokens());
  std::vector<std::string> keys;
  for (const BlockKey& key : chain.segments) keys.push_back(key.ToString());
  if (chain.tail.has_value()) keys.push_back(chain.tail->ToString());
  return keys;
}

std::vector<uint16_t> Fetched::Values(int request, int layer, Part part) const {
  const auto payload = BlobPayload(blobs.at({request, layer, part}).bytes.span());
  std::vector<uint16_t> values(payload.size() / sizeof(uint16_t));
  std::memcpy(values.data(), payload.data(), payload.size());
  return values;
}

v1::GetSegmentsRequest MakeGet(const std::vector<std::string>& keys,
                               const std::vector<v1::SegmentForm>& forms) {
  v1::GetSegmentsRequest request;
  for (const std::string& key : keys) {
    v1::SegmentRequest* segment = request.add_segments();
    segment->set_block_key(key);
    for (const v1::SegmentForm form : forms) segment->add_accepted_forms(form);
  }
  return request;
}

absl::StatusOr<Fetched> Fetch(KvClient& client, const v1::GetSegmentsRequest& request) {
  Fetched fetched;
  const absl::Status status = client.Get(
      request, Soon(),
      [&](const v1::GetPlan& plan) {
        fetched.plan = plan;
        return absl::OkStatus();
      },
      [&](FetchedBlob blob) {
        const std::tuple key(blob.request_index, static_cast<int>(blob.header.layer),
                             blob.header.part);
        if (!fetched.blobs.emplace(key, std::move(blob)).second) {
          return absl::InternalError("a blob came twice");
        }
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return fetched;
}

}  // namespace fourierkv
