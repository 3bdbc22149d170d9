// What stands around the services: profiles, metrics, and the server program's life.

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "kv_service/rpc/metrics_exporter.h"
#include "proto/support/grpc_status.h"
#include "proto/support/server_runner.h"
#include "tests/clients/subprocess.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

TEST(ProfileServiceTest, AProfileIsKeptUnderTheHashOfItsContent) {
  TestService service;
  const CodecProfile profile = SmallProfile();
  for (int i = 0; i < 2; ++i) {  // the second time changes nothing
    const auto id = service.client().PutProfile(profile, Soon());
    ASSERT_TRUE(id.ok()) << id.status();
    EXPECT_EQ(*id, profile.Id());
  }
  const auto read = service.client().GetProfile(profile.Id(), Soon());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, profile);
  ASSERT_TRUE(service.client().PutProfile(SmallProfile("another"), Soon()).ok());
  const auto list = service.client().ListProfiles(Soon());
  ASSERT_TRUE(list.ok());
  ASSERT_EQ(list->profiles_size(), 2);
  EXPECT_EQ(list->profiles(0).name(), "another");
  EXPECT_EQ(list->profiles(1).name(), "small");
  EXPECT_EQ(list->profiles(1).profile_id(), profile.Id().ToString());
  EXPECT_EQ(list->profiles(1).layers(), kSmall.layers);
  EXPECT_EQ(list->profiles(1).segment_tokens(), kS);
  EXPECT_FLOAT_EQ(list->profiles(1).bits_per_element(), ProfileLayout(profile).BitsPerElement());
}

TEST(ProfileServiceTest, WhatIsNoProfileIsRefused) {
  TestService service;
  auto stub = v1::ProfileService::NewStub(
      grpc::CreateChannel(service.address(), grpc::InsecureChannelCredentials()));
  const std::string right = SmallProfile().ToJson();
  const std::vector<std::pair<std::string, const char*>> cases = {
      {"", ""},
      {"{", ""},
      {right + "x", ""},
      {absl::StrReplaceAll(right, {{"\"segment_tokens\":128", "\"segment_tokens\":100"}}),
       "segment_tokens"},
      {absl::StrReplaceAll(right, {{"\"segment_tokens\"", "\"segments\""}}), "segments"},
      {absl::StrReplaceAll(right, {{"\"bits\":8", "\"bits\":7"}}), "bits"},
      {std::string(4 << 20, '['), ""},
  };
  for (const auto& [json, words] : cases) {
    SCOPED_TRACE(json.substr(0, 200));
    grpc::ClientContext context;
    v1::PutProfileRequest request;
    v1::PutProfileResponse response;
    request.set_profile_json(json);
    const absl::Status status = FromGrpc(stub->PutProfile(&context, request, &response));
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
  }
  for (const auto& [id, code] : {std::pair{std::string(32, 'x'), StatusCode::kNotFound},
                                 std::pair{std::string("x"), StatusCode::kInvalidArgument}}) {
    grpc::ClientContext context;
    v1::GetProfileRequest request;
    v1::GetProfileResponse response;
    request.set_profile_id(id);
    EXPECT_EQ(FromGrpc(stub->GetProfile(&context, request, &response)).code(), code);
  }
  EXPECT_EQ(service.client().ListProfiles(Soon())->profiles_size(), 0);
}

// What an HTTP server at 127.0.0.1:PORT answers until it closes.
std::string Http(const std::string& address, const std::string& request) {
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0) {
    send(fd, request.data(), request.size(), MSG_NOSIGNAL);
    char buffer[4096];
    for (ssize_t n; (n = read(fd, buffer, sizeof buffer)) > 0;) answer.append(buffer, n);
  }
  close(fd);
  return answer;
}

// By name; every line that is no comment must be "name value".
std::map<std::string, double> Metrics(const std::string& address) {
  const std::string answer = Http(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_TRUE(absl::StartsWith(answer, "HTTP/1.1 200"));
  std::map<std::string, double> values;
  const size_t body = answer.find("\r\n\r\n");
  for (const absl::string_view line : absl::StrSplit(answer.substr(body + 4), '\n')) {
    if (line.empty() || line[0] == '#') continue;
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    double value = 0;
    EXPECT_EQ(words.size(), 2) << line;
    EXPECT_TRUE(absl::SimpleAtod(words.back(), &value)) << line;
    values[words.front()] = value;
  }
  return values;
}

TEST(MetricsExporterTest, CountersMoveAsTheServiceWorks) {
  TestService service;
  const auto exporter = MetricsExporter::Start("127.0.0.1:0", &service.core());
  ASSERT_TRUE(exporter.ok()) << exporter.status();
  const std::string address = (*exporter)->address();
  auto before = Metrics(address);
  EXPECT_EQ(before.at("fourierkv_segments"), 0);
  EXPECT_EQ(before.at("fourierkv_received_bytes_total"), 0);
  EXPECT_EQ(before.at("fourierkv_memory_budget_bytes"), int64_t{1} << 30);

  ASSERT_TRUE(service.client().PutProfile(SmallProfile(), Soon()).ok());
  const v1::CacheNamespace ns = SmallWireNamespace();
  const Sequence sequence(1, 2 * kS);
  ASSERT_TRUE(PutSequence(service.client(), MakePutHeader(ns, sequence), sequence).ok());
  ASSERT_TRUE(
      Fetch(service.client(), MakeGet(KeysOf(ns, sequence), {v1::SEGMENT_FORM_EXACT})).ok());
  auto open = service.client().Put(MakePutHeader(ns, Sequence(2, kS)), Soon());
  ASSERT_TRUE(open.ok());

  auto after = Metrics(address);
  EXPECT_EQ(after.at("fourierkv_segments"), 2);
  EXPECT_EQ(after.at("fourierkv_received_bytes_total"), kSmall.DenseBytes(2 * kS));
  EXPECT_GT(after.at("fourierkv_sent_bytes_total"), kSmall.DenseBytes(2 * kS));
  EXPECT_EQ(after.at("fourierkv_puts_begun_total"), 2);
  EXPECT_EQ(after.at("fourierkv_puts_committed_total"), 1);
  EXPECT_EQ(after.at("fourierkv_open_puts"), 1);
  EXPECT_EQ(after.at("fourierkv_encoded_dense_bytes_total"), kSmall.DenseBytes(kS));
  EXPECT_GE(after.at("fourierkv_heap_held_bytes"), after.at("fourierkv_heap_allocated_bytes"));
  EXPECT_GT(after.at("fourierkv_memory_used_bytes"), 0);
  EXPECT_EQ(after.at("fourierkv_events_total"), 2);  // two segments became held
  EXPECT_EQ(after.at("fourierkv_event_log_events"), 2);
  open->reset();
}

TEST(MetricsExporterTest, WhatIsNoScrapeIsAnsweredAndHarmless) {
  TestService service;
  const auto exporter = MetricsExporter::Start("127.0.0.1:0", &service.core());
  ASSERT_TRUE(exporter.ok()) << exporter.status();
  const std::string& address = (*exporter)->address();
  const auto first_line = [&](const std::string& request) {
    const std::string answer = Http(address, request);
    return answer.substr(0, answer.find("\r\n"));
  };
  EXPECT_EQ(first_line("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "HTTP/1.1 404 Not Found");
  EXPECT_EQ(first_line("GET /metrics/x HTTP/1.1\r\n\r\n"), "HTTP/1.1 404 Not Found");
  EXPECT_EQ(first_line("GET /metrics?a=b HTTP/1.0\r\n\r\n"), "HTTP/1.1 200 OK");
  EXPECT_EQ(first_line("POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n"),
            "HTTP/1.1 404 Not Found");
  EXPECT_EQ(first_line("hello\r\n\r\n"), "HTTP/1.1 400 Bad Request");
  EXPECT_EQ(first_line("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "HTTP/1.1 400 Bad Request");
  Http(address, std::string(100'000, 'x'));  // no end in sight: dropped
  const std::string head = Http(address, "HEAD /metrics HTTP/1.1\r\n\r\n");
  EXPECT_TRUE(absl::StartsWith(head, "HTTP/1.1 200 OK"));
  EXPECT_TRUE(absl::EndsWith(head, "\r\n\r\n")) << "no body";
  EXPECT_EQ(Metrics(address).count("fourierkv_segments"), 1);
}

TEST(MetricsExporterTest, AnAddressThatCannotBeServedIsRefused) {
  TestService service;
  const auto first = MetricsExporter::Start("127.0.0.1:0", &service.core());
  ASSERT_TRUE(first.ok());
  for (const auto& [listen, code] :
       {std::pair{(*first)->address(), StatusCode::kUnavailable},
        std::pair{std::string("192.0.2.1:0"), StatusCode::kUnavailable},
        std::pair{std::string("nonsense"), StatusCode::kInvalidArgument},
        std::pair{std::string("127.0.0.1:"), StatusCode::kInvalidArgument},
        std::pair{std::string("127.0.0.1:http"), StatusCode::kInvalidArgument}}) {
    const auto refused = MetricsExporter::Start(listen, &service.core());
    EXPECT_EQ(refused.status().code(), code) << listen;
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr("--metrics"));
  }
}

TEST(RunServerTest, AnAddressThatCannotBeServedIsRefused) {
  TestService service;
  ServerOptions options;
  for (const auto& [listen, code] :
       {std::pair{service.address(), StatusCode::kUnavailable},
        std::pair{std::string("192.0.2.1:0"), StatusCode::kInvalidArgument},  // not loopback
        std::pair{std::string("127.0.0.1:port"), StatusCode::kUnavailable},
        std::pair{std::string("7070"), StatusCode::kInvalidArgument}}) {
    options.listen = listen;
    const absl::Status status = RunServer(options, {});
    EXPECT_EQ(status.code(), code) << listen << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--listen"));
  }
  options.listen = "192.0.2.1:0";  // of no machine
  ServerSecurityFlags flags;
  flags.insecure = true;
  const auto security = MakeServerSecurity(flags, options.listen);
  ASSERT_TRUE(security.ok()) << security.status();
  options.security = *security;
  EXPECT_EQ(RunServer(options, {}).code(), StatusCode::kUnavailable);
}

// One unary call, or one message to a stream and its answer, without generated code.
grpc::Status RawCall(const std::string& address, const std::string& method,
                     const std::string& request, std::string* response) {
  grpc::GenericStub stub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(Soon()));
  grpc::CompletionQueue queue;
  const auto wait = [&] {
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    return ok;
  };
  auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  wait();
  const grpc::Slice slice(request);
  call->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
  wait();
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  if (wait()) {
    std::vector<grpc::Slice> slices;
    answer.Dump(&slices);
    for (const auto& s : slices) {
      response->append(reinterpret_cast<const char*>(s.begin()), s.size());
    }
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
  queue.Shutdown();
  return status;
}

constexpr char kHealth[] = "/grpc.health.v1.Health/Check";
constexpr char kReflection[] = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
const char kListServices[] = "\x3a\x01*";  // ServerReflectionRequest.list_services = "*"

TEST(ServerProgramTest, SaysWhereItListensAndThatItIsReady) {
  Subprocess server("fourierkv-server", {"--listen", "127.0.0.1:0"});
  const std::string address = server.WaitForAddress();
  ASSERT_NE(address, "") << server.err();
  std::string health;
  const grpc::Status status = RawCall(address, kHealth, "", &health);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(health, "\x08\x01") << "SERVING";
  std::string services;
  EXPECT_TRUE(RawCall(address, kReflection, kListServices, &services).ok());
  for (const char* name : {"fourierkv.v1.KvCacheService", "fourierkv.v1.ProfileService",
                           "fourierkv.v1.AdminService", "grpc.health.v1.Health"}) {
    EXPECT_THAT(services, HasSubstr(name));
  }
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait(), 0) << server.err();
}

TEST(ServerProgramTest, ReflectionCanBeTurnedOff) {
  Subprocess server("fourierkv-server", {"--listen", "127.0.0.1:0", "--no-reflection"});
  const std::string address = server.WaitForAddress();
  ASSERT_NE(address, "") << server.err();
  std::string nothing;
  EXPECT_FALSE(RawCall(address, kReflection, kListServices, &nothing).ok());
  EXPECT_EQ(nothing, "");
  std::string health;
  EXPECT_TRUE(RawCall(address, kHealth, "", &health).ok()) << "everything else is there";
}

TEST(ServerProgramTest, TwoServersCannotShareAnAddress) {
  const TempFolder folder;
  for (const std::string& listen :
       {std::string("127.0.0.1:0"), absl::StrCat("unix:", folder.path(), "/socket")}) {
    SCOPED_TRACE(listen);
    Subprocess first("fourierkv-server", {"--listen", listen});
    const std::string address = first.WaitForAddress();
    ASSERT_NE(address, "") << first.err();
    const Ended second = RunProgram("fourierkv-server", {"--listen", address});
    EXPECT_EQ(second.status, 1);
    EXPECT_THAT(second.err, HasSubstr(absl::StrCat("cannot listen on ", address)));
    EXPECT_EQ(second.out, "");
    std::string health;
    EXPECT_TRUE(RawCall(address, kHealth, "", &health).ok()) << "the first goes on";
  }
}

TEST(ServerProgramTest, ASocketThatACrashLeftBehindIsTakenOver) {
  const TempFolder folder;
  const std::string listen = absl::StrCat("unix:", folder.path(), "/socket");
  {
    Subprocess crashing("fourierkv-server", {"--listen", listen});
    ASSERT_EQ(crashing.WaitForAddress(), listen) << crashing.err();
  }
  Subprocess next("fourierkv-server", {"--listen", listen});
  EXPECT_EQ(next.WaitForAddress(), listen) << next.err();
  std::string health;
  EXPECT_TRUE(RawCall(listen, kHealth, "", &health).ok());
}

TEST(ServerProgramTest, AMetricsPortInUseIsRefused) {
  TestService service;
  const Ended ended =
      RunProgram("fourierkv-server", {"--listen", "127.0.0.1:0", "--metrics", service.address()});
  EXPECT_EQ(ended.status, 1);
  EXPECT_THAT(ended.err, HasSubstr("--metrics"));
}

TEST(ServerProgramTest, SigtermLetsRunningPutsFinish) {
  Subprocess server("fourierkv-server", {"--listen", "127.0.0.1:0"});
  const std::string address = server.WaitForAddress();
  ASSERT_NE(address, "") << server.err();
  const auto client = KvClient::Connect(address, absl::Seconds(10));
  ASSERT_TRUE(client.ok()) << client.status();
  const v1::CacheNamespace ns = SmallWireNamespace(/*with_profile=*/false);
  const Sequence sequence(1, kS);
  auto put = (*client)->Put(MakePutHeader(ns, sequence), Soon());
  ASSERT_TRUE(put.ok()) << put.status();
  server.Signal(SIGTERM);
  ASSERT_TRUE(server.WaitForError("server.draining"));
  for (int layer = 0; layer < kSmall.layers; ++layer) {
    for (const Part part : kParts) {
      EXPECT_TRUE((*put)->Send(0, layer, part, AsBytes(sequence.PartOf(0, layer, part))).ok());
    }
  }
  const auto committed = (*put)->Commit();
  EXPECT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(server.Wait(), 0) << server.err();
  EXPECT_THAT(server.err(), HasSubstr("server.stopped"));
}

TEST(ServerProgramTest, SigtermCancelsWhatDoesNotFinish) {
  Subprocess server("fourierkv-server", {"--listen", "127.0.0.1:0", "--drain-seconds", "0.05"});
  const auto client = KvClient::Connect(server.WaitForAddress(), absl::Seconds(10));
  ASSERT_TRUE(client.ok()) << client.status();
  const v1::CacheNamespace ns = SmallWireNamespace(false);
  auto put = (*client)->Put(MakePutHeader(ns, Sequence(1, kS)), Soon());
  ASSERT_TRUE(put.ok()) << put.status();
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait(), 0) << server.err();
  EXPECT_FALSE((*put)->Commit().ok());
}

TEST(ServerProgramTest, ASecondSignalEndsItAtOnce) {
  Subprocess server("fourierkv-server", {"--listen", "127.0.0.1:0", "--drain-seconds", "3600"});
  const auto client = KvClient::Connect(server.WaitForAddress(), absl::Seconds(10));
  ASSERT_TRUE(client.ok()) << client.status();
  const v1::CacheNamespace ns = SmallWireNamespace(false);
  auto put = (*client)->Put(MakePutHeader(ns, Sequence(1, kS)), Soon());
  ASSERT_TRUE(put.ok()) << put.status();
  server.Signal(SIGINT);
  ASSERT_TRUE(server.WaitForError("server.draining"));
  server.Signal(SIGINT);
  EXPECT_EQ(server.Wait(), 128 + SIGINT);
}

}  // namespace
}  // namespace fourierkv
