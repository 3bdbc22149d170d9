// PrefillService and DecodeService over real gRPC: what callers may ask for, and how many at once.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/cpp/worker_client.h"
#include "clients/decode_worker/decode_service.h"
#include "clients/prefill_worker/prefill_service.h"
#include "clients/worker/admission.h"
#include "proto/support/grpc_status.h"
#include "tests/clients/worker_fixture.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::ElementsAreArray;
using testing::HasSubstr;
using testing::SizeIs;

TEST(AdmissionTest, PlacesAreTakenAndGivenBack) {
  Admission admission(2);
  auto first = admission.Enter();
  {
    const auto second = admission.Enter();
    ASSERT_TRUE(first.ok() && second.ok());
    const auto third = admission.Enter();
    EXPECT_EQ(third.status().code(), StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(third.status().message()), HasSubstr("--max-requests"));
  }
  const Admission::Ticket moved = *std::move(first);
  EXPECT_TRUE(admission.Enter().ok());
  const auto second = admission.Enter();
  EXPECT_TRUE(second.ok());
  EXPECT_FALSE(admission.Enter().ok()) << "a ticket that was moved counts once";
}

// Both workers of a model, in this process.
class Workers {
 public:
  Workers(const std::string& model_dir, int max_requests) {
    WorkerOptions options;
    options.server = service_.address();
    options.model_dir = model_dir;
    options.threads = 2;
    options.recent_window = 64;
    auto runtime = WorkerRuntime::Create(options);
    if (!runtime.ok()) {
      ADD_FAILURE() << runtime.status();
      std::abort();
    }
    runtime_ = *std::move(runtime);
    prefill_service_ = std::make_unique<PrefillServiceImpl>(runtime_.get(), max_requests);
    decode_service_ = std::make_unique<DecodeServiceImpl>(runtime_.get(), max_requests);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(prefill_service_.get());
    builder.RegisterService(decode_service_.get());
    server_ = builder.BuildAndStart();
    channel_ =
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials());
  }
  ~Workers() { server_->Shutdown(absl::ToChronoTime(absl::Now())); }

  absl::StatusOr<v1::PrefillResult> Prefill(const v1::PrefillRequest& request) {
    progress.clear();
    return PrefillClient(channel_).Prefill(request, Soon(), [&](const v1::PrefillProgress& p) {
      progress.push_back(p.tokens_done());
    });
  }
  absl::StatusOr<v1::GenerateResult> Generate(const v1::GenerateRequest& request) {
    tokens.clear();
    return DecodeClient(channel_).Generate(
        request, Soon(), [&](const v1::GeneratedToken& t) { tokens.push_back(t.token_id()); });
  }

  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  std::vector<uint64_t> progress;  // of the last prefill
  std::vector<uint32_t> tokens;    // of the last generation

 private:
  TestService service_;
  std::unique_ptr<WorkerRuntime> runtime_;
  std::unique_ptr<PrefillServiceImpl> prefill_service_;
  std::unique_ptr<DecodeServiceImpl> decode_service_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

class WorkerServiceTest : public testing::Test {
 protected:
  v1::PrefillRequest MakePrefill(int64_t tokens) const {
    v1::PrefillRequest request;
    for (const int32_t token : RandomPrompt(3, tokens)) request.add_token_ids(token);
    return request;
  }
  v1::GenerateRequest MakeGenerate(int64_t tokens, int new_tokens) const {
    v1::GenerateRequest request;
    *request.mutable_token_ids() = MakePrefill(tokens).token_ids();
    request.set_max_new_tokens(new_tokens);
    return request;
  }

  const TinyModel model_;
  Workers workers_{model_.folder(), 4};
};

TEST_F(WorkerServiceTest, PrefillReportsProgressAndGenerateStreamsTokens) {
  const auto prefill = workers_.Prefill(MakePrefill(600));
  ASSERT_TRUE(prefill.ok()) << prefill.status();
  EXPECT_THAT(workers_.progress, ElementsAreArray({512, 600}));
  EXPECT_EQ(prefill->stored_segments(), 5);
  v1::GenerateRequest request = MakeGenerate(600, 12);
  request.set_prefilled_tokens(600);
  const auto greedy = workers_.Generate(request);
  ASSERT_TRUE(greedy.ok()) << greedy.status();
  EXPECT_THAT(workers_.tokens, SizeIs(12));
  EXPECT_EQ(greedy->reused_tokens(), 599);
  EXPECT_EQ(greedy->new_tokens(), 12);

  // A stop token ends the answer, and is not part of it.
  const std::vector<uint32_t> all = workers_.tokens;
  request.add_stop_token_ids(all[7]);
  const auto stopped = workers_.Generate(request);
  ASSERT_TRUE(stopped.ok()) << stopped.status();
  const size_t first = std::find(all.begin(), all.end(), all[7]) - all.begin();
  EXPECT_THAT(workers_.tokens, ElementsAreArray(all.begin(), all.begin() + first));
  EXPECT_EQ(stopped->finish_reason(), v1::FINISH_REASON_STOP);
}

TEST_F(WorkerServiceTest, SamplingIsReproducible) {
  v1::GenerateRequest request = MakeGenerate(50, 40);
  request.mutable_sampling()->set_temperature(5);
  request.mutable_sampling()->set_seed(11);
  ASSERT_TRUE(workers_.Generate(request).ok());
  const std::vector<uint32_t> first = workers_.tokens;
  ASSERT_TRUE(workers_.Generate(request).ok());
  EXPECT_EQ(workers_.tokens, first);
  request.mutable_sampling()->set_seed(12);
  ASSERT_TRUE(workers_.Generate(request).ok());
  EXPECT_NE(workers_.tokens, first);
}

TEST_F(WorkerServiceTest, PrefillsThatMakeNoSense) {
  const auto expect = [&](const std::function<void(v1::PrefillRequest&)>& edit, StatusCode code,
                          const std::string& words) {
    v1::PrefillRequest request = MakePrefill(10);
    edit(request);
    const auto result = workers_.Prefill(request);
    EXPECT_EQ(result.status().code(), code) << result.status();
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(words));
  };
  expect([](auto& r) { r.clear_token_ids(); }, StatusCode::kInvalidArgument, "token_ids is empty");
  expect([](auto& r) { r.set_token_ids(4, 32); }, StatusCode::kInvalidArgument,
         "token_ids[4] is 32; the vocabulary has 32");
  expect([](auto& r) { r.set_token_ids(9, ~0u); }, StatusCode::kInvalidArgument, "token_ids[9]");
  expect([](auto& r) { r.mutable_token_ids()->Resize(4097, 1); }, StatusCode::kOutOfRange,
         "token_ids has 4097 tokens, and 0 more are asked for; the model's context is 4096");
  expect([](auto& r) { r.set_cache_mode(static_cast<v1::CacheMode>(9)); },
         StatusCode::kInvalidArgument, "cache_mode is 9");
  expect([](auto& r) { r.set_compressed_form(v1::SEGMENT_FORM_EXACT); },
         StatusCode::kInvalidArgument, "must be COMPACT or ARCHIVED");
  expect([](auto& r) { r.set_compressed_form(v1::SEGMENT_FORM_ARCHIVED); },
         StatusCode::kInvalidArgument, "has no archive section");
}

TEST_F(WorkerServiceTest, GenerationsThatMakeNoSense) {
  const auto expect = [&](const std::function<void(v1::GenerateRequest&)>& edit, StatusCode code,
                          const std::string& words) {
    v1::GenerateRequest request = MakeGenerate(10, 5);
    edit(request);
    const auto result = workers_.Generate(request);
    EXPECT_EQ(result.status().code(), code) << result.status();
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(words));
    EXPECT_THAT(workers_.tokens, SizeIs(0));
  };
  constexpr auto kInvalid = StatusCode::kInvalidArgument;
  expect([](auto& r) { r.clear_token_ids(); }, kInvalid, "token_ids is empty");
  expect([](auto& r) { r.set_token_ids(0, 32); }, kInvalid, "token_ids[0] is 32");
  expect([](auto& r) { r.set_max_new_tokens(0); }, kInvalid, "max_new_tokens is 0");
  expect([](auto& r) { r.set_max_new_tokens(4087); }, StatusCode::kOutOfRange, "4087 more");
  expect([](auto& r) { r.set_max_new_tokens(~0u); }, StatusCode::kOutOfRange, "context is 4096");
  expect([](auto& r) { r.set_prefilled_tokens(11); }, kInvalid, "prefilled_tokens is 11");
  expect([](auto& r) { r.set_prefilled_tokens(~uint64_t{0}); }, kInvalid, "prefilled_tokens");
  expect([](auto& r) { r.add_stop_token_ids(32); }, kInvalid, "stop_token_ids: 32");
  expect([](auto& r) { r.mutable_stop_token_ids()->Resize(65, 1); }, kInvalid, "more than 64");
  expect([](auto& r) { r.mutable_sampling()->set_temperature(-1); }, kInvalid, "temperature");
  expect([](auto& r) { r.mutable_sampling()->set_temperature(NAN); }, kInvalid, "temperature");
  expect([](auto& r) { r.mutable_sampling()->set_temperature(1e9f); }, kInvalid, "temperature");
  expect([](auto& r) { r.mutable_sampling()->set_top_p(1.5f); }, kInvalid, "top_p");
  expect([](auto& r) { r.mutable_sampling()->set_top_p(-0.1f); }, kInvalid, "top_p");
  expect([](auto& r) { r.mutable_sampling()->set_top_p(NAN); }, kInvalid, "top_p");
  expect([](auto& r) { r.set_cache_mode(static_cast<v1::CacheMode>(9)); }, kInvalid,
         "cache_mode is 9");
}

// A model that is slow enough to be caught at work.
TEST(WorkerServiceLoadTest, ABusyWorkerRefusesAndACancelledCallMakesRoom) {
  Workers workers(std::string(FOURIERKV_TEST_DATA) + "/needle-4m", /*max_requests=*/1);
  // Refused for its content if it is let in at all.
  const auto probe_prefill = [&] { return workers.Prefill({}).status().code(); };
  const auto probe_decode = [&] { return workers.Generate({}).status().code(); };
  const auto until = [](const std::function<bool()>& done) {
    for (const absl::Time deadline = Soon(); absl::Now() < deadline;) {
      if (done()) return true;
      absl::SleepFor(absl::Milliseconds(1));
    }
    return false;
  };
  const auto stubs_prefill = v1::PrefillService::NewStub(workers.channel());
  const auto stubs_decode = v1::DecodeService::NewStub(workers.channel());
  {
    grpc::ClientContext context;
    v1::PrefillRequest request;
    request.mutable_token_ids()->Resize(16000, 'a');
    auto reader = stubs_prefill->Prefill(&context, request);
    EXPECT_TRUE(until([&] { return probe_prefill() == StatusCode::kResourceExhausted; }));
    context.TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
    EXPECT_TRUE(until([&] { return probe_prefill() == StatusCode::kInvalidArgument; }));
  }
  {
    grpc::ClientContext context;
    v1::GenerateRequest request;
    request.mutable_token_ids()->Resize(16000, 'a');
    request.set_max_new_tokens(1);
    auto reader = stubs_decode->Generate(&context, request);
    EXPECT_TRUE(until([&] { return probe_decode() == StatusCode::kResourceExhausted; }));
    context.TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
    EXPECT_TRUE(until([&] { return probe_decode() == StatusCode::kInvalidArgument; }));
  }
}

}  // namespace
}  // namespace fourierkv
