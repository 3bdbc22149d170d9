#include "clients/loadtest/target.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/cpp/kv_client.h"
#include "proto/support/convert.h"

namespace fourierkv::loadtest {
namespace {

constexpr absl::Duration kAdminTimeout = absl::Seconds(10);

// Names what decides the values: two runs that would store different ones under the same tokens are
// in different namespaces.
v1::CacheNamespace MakeNamespace(const LoadOptions& options) {
  v1::CacheNamespace ns;
  ns.set_model_id("fourierkv-loadtest");
  ns.set_model_revision(
      absl::StrCat("values 1, seed ", options.seed, ", payload ", FormName(options.payload)));
  ns.set_weight_dtype("bf16");
  ns.set_kv_dtype("bf16");
  ns.set_layers(static_cast<uint32_t>(options.geometry.layers));
  ns.set_kv_heads(static_cast<uint32_t>(options.geometry.kv_heads));
  ns.set_head_dim(static_cast<uint32_t>(options.geometry.head_dim));
  ns.set_tp_size(1);
  ns.set_segment_tokens(static_cast<uint32_t>(options.segment_tokens));
  if (options.profile.has_value()) ns.set_profile_id(options.profile->Id().ToString());
  return ns;
}

// A connection of its own, where gRPC would share one among all channels to the same address.
absl::StatusOr<std::unique_ptr<Stub>> OpenConnection(const LoadOptions& options) {
  if (!options.channel.tls_ca.empty() || !options.channel.token_file.empty()) {
    // Not shared with TLS, for each channel reads its certificates for itself. Tokens without TLS,
    // which only loopback addresses get, share one.
    absl::StatusOr<std::shared_ptr<grpc::Channel>> secure =
        ConnectChannel(options.server, absl::Seconds(options.connect_seconds), options.channel);
    if (!secure.ok()) return secure.status();
    return v1::KvCacheService::NewStub(*secure);
  }
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(8 << 20);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  const std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(options.server, grpc::InsecureChannelCredentials(), arguments);
  if (!channel->WaitForConnected(
          std::chrono::system_clock::now() +
          std::chrono::milliseconds(static_cast<int64_t>(1000 * options.connect_seconds)))) {
    return absl::UnavailableError(absl::StrCat("not all --connections to ", options.server,
                                               " could be made within ", options.connect_seconds,
                                               " seconds"));
  }
  return v1::KvCacheService::NewStub(channel);
}

}  // namespace

Target::Target(const LoadOptions& options)
    : population_({.size = options.population,
                   .tokens = options.value_tokens,
                   .segment_tokens = options.segment_tokens,
                   .prefix_share = options.prefix_share,
                   .prefix_groups = options.prefix_groups,
                   .seed = options.seed}) {}

Target::~Target() = default;

absl::StatusOr<std::unique_ptr<Target>> Target::Connect(const LoadOptions& options) {
  std::unique_ptr<Target> target(new Target(options));
  if (absl::Status s = target->Open(options); !s.ok()) return s;
  if (absl::Status s = target->MakeSetup(options); !s.ok()) return s;
  return target;
}

absl::Status Target::Open(const LoadOptions& options) {
  absl::StatusOr<std::unique_ptr<KvClient>> client =
      KvClient::Connect(options.server, absl::Seconds(options.connect_seconds), options.channel);
  if (!client.ok()) {
    return {client.status().code(), absl::StrCat("--server: ", client.status().message())};
  }
  if (auto stats = (*client)->Stats(absl::Now() + kAdminTimeout); stats.ok()) {
    server_ = ServerInfo{stats->version(), stats->backend()};
  }
  if (options.profile.has_value()) {
    // Whoever may only read need not register what is there.
    const Digest id = options.profile->Id();
    if (!(*client)->GetProfile(id, absl::Now() + kAdminTimeout).ok()) {
      const absl::StatusOr<Digest> put =
          (*client)->PutProfile(*options.profile, absl::Now() + kAdminTimeout);
      if (!put.ok()) {
        return {put.status().code(),
                absl::StrCat("--profile cannot be registered: ", put.status().message())};
      }
    }
  }
  for (int i = 0; i < options.connections; ++i) {
    absl::StatusOr<std::unique_ptr<Stub>> stub = OpenConnection(options);
    if (!stub.ok()) return stub.status();
    stubs_.push_back(*std::move(stub));
  }
  return absl::OkStatus();
}

absl::Status Target::MakeSetup(const LoadOptions& options) {
  if (options.profile.has_value()) layout_ = std::make_unique<ProfileLayout>(*options.profile);
  backend_ = CreateCpuBackend(1);
  values_ =
      std::make_unique<ValueSource>(options.seed, options.geometry,
                                    options.payload == SegmentForm::kExact ? 0 : kEncodedVariants);
  absl::StatusOr<std::unique_ptr<PayloadMaker>> payload = PayloadMaker::Create(
      values_.get(), options.payload, options.segment_tokens, layout_.get(), backend_.get());
  if (!payload.ok()) return payload.status();
  payload_ = *std::move(payload);
  if (options.verify) {
    verifier_ = std::make_unique<Verifier>(values_.get(), options.segment_tokens, layout_.get(),
                                           backend_.get());
  }
  setup_.ns = MakeNamespace(options);
  setup_.population = &population_;
  setup_.payload = payload_.get();
  setup_.verifier = verifier_.get();
  setup_.traffic = &traffic_;
  // Segment 0 and tails are only ever held exactly.
  for (const SegmentForm form : {options.fetch, SegmentForm::kExact, SegmentForm::kLossless}) {
    const v1::SegmentForm wire = ToProto(form);
    if (std::find(setup_.accepted_forms.begin(), setup_.accepted_forms.end(), wire) ==
        setup_.accepted_forms.end()) {
      setup_.accepted_forms.push_back(wire);
    }
  }
  setup_.keep_exact = IsExactData(options.fetch);
  setup_.exact_form =
      options.fetch == SegmentForm::kLossless ? v1::SEGMENT_FORM_LOSSLESS : v1::SEGMENT_FORM_EXACT;
  setup_.match_by_keys = options.match_by_keys;
  setup_.deadline = std::chrono::nanoseconds(static_cast<int64_t>(1e9 * options.deadline_seconds));
  return absl::OkStatus();
}

}  // namespace fourierkv::loadtest
