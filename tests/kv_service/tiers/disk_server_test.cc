// A real server with a disk tier: killed, started again, and asked over gRPC.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "disk_fixture.h"
#include "tests/clients/subprocess.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

const std::vector<v1::SegmentForm> kExactOrCompact = {v1::SEGMENT_FORM_COMPACT,
                                                      v1::SEGMENT_FORM_EXACT};

class DiskServerTest : public testing::Test {
 protected:
  void Start(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {
        "--listen",     "127.0.0.1:0", "--metrics", "", "--disk-path", directory_.path() + "/tier",
        "--disk-bytes", "64MB"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    server_ = std::make_unique<Subprocess>("fourierkv-server", arguments);
    auto client = KvClient::Connect(server_->WaitForAddress(), absl::Seconds(20));
    ASSERT_TRUE(client.ok()) << client.status() << server_->err();
    client_ = *std::move(client);
  }
  void Kill() {
    server_->Signal(SIGKILL);
    server_->Wait();
  }
  absl::StatusOr<v1::PutCommitted> Put(const Sequence& sequence, v1::Durability durability) {
    v1::PutHeader header = MakePutHeader(ns_, sequence);
    header.set_durability(durability);
    return PutSequence(*client_, header, sequence);
  }
  v1::MatchPrefixResponse Match(const Sequence& sequence) {
    v1::MatchPrefixRequest request;
    *request.mutable_namespace_() = ns_;
    request.mutable_token_ids()->Add(sequence.tokens().begin(), sequence.tokens().end());
    auto match = client_->MatchPrefix(request, Soon());
    EXPECT_TRUE(match.ok()) << match.status();
    return match.ok() ? *match : v1::MatchPrefixResponse();
  }

  TemporaryDirectory directory_;
  std::unique_ptr<Subprocess> server_;
  std::unique_ptr<KvClient> client_;
  const v1::CacheNamespace ns_ = SmallWireNamespace();
};

TEST_F(DiskServerTest, WhatItAnsweredAsDiskIsThereAfterAKillByteByByte) {
  Start();
  ASSERT_TRUE(client_->PutProfile(SmallProfile(), Soon()).ok());
  const Sequence sequence(7, 3 * kS + 11);
  const auto committed = Put(sequence, v1::DURABILITY_DISK);
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->durability(), v1::DURABILITY_DISK);
  const auto keys = KeysOf(ns_, sequence);
  const auto before = Fetch(*client_, MakeGet(keys, kExactOrCompact));
  ASSERT_TRUE(before.ok()) << before.status();
  for (int round = 0; round < 2; ++round) {
    Kill();
    Start();
    const auto match = Match(sequence);
    ASSERT_EQ(match.segments_size(), 4);
    EXPECT_EQ(match.segments(0).tier(), v1::DURABILITY_DISK);
    const auto after = Fetch(*client_, MakeGet(keys, kExactOrCompact));
    ASSERT_TRUE(after.ok()) << after.status();
    ASSERT_EQ(after->blobs.size(), before->blobs.size());
    for (const auto& [where, blob] : before->blobs) {
      const auto it = after->blobs.find(where);
      ASSERT_NE(it, after->blobs.end());
      EXPECT_TRUE(std::ranges::equal(it->second.bytes.span(), blob.bytes.span()));
    }
    EXPECT_EQ(Match(sequence).segments(0).tier(), v1::DURABILITY_MEMORY);  // it was read
    // The profile is back, too, so that puts of the same sequence send nothing.
    EXPECT_EQ(Put(sequence, v1::DURABILITY_DISK)->payload_bytes_received(), 0);
  }
}

TEST_F(DiskServerTest, DeletedSegmentsStayDeleted) {
  Start();
  ASSERT_TRUE(client_->PutProfile(SmallProfile(), Soon()).ok());
  const Sequence sequence(8, 2 * kS);
  ASSERT_TRUE(Put(sequence, v1::DURABILITY_DISK).ok());
  Kill();
  Start();
  const auto first = Digest::FromRaw(KeysOf(ns_, sequence)[0], "key");
  ASSERT_TRUE(client_->Delete({*first}, Soon()).ok());
  Kill();
  Start();
  EXPECT_EQ(Match(sequence).segments_size(), 0);
  EXPECT_EQ((*client_->Exists({*first}, Soon()))[0], false);
}

TEST_F(DiskServerTest, AnOrderlyStopWritesWhatWasStillBehind) {
  Start();
  ASSERT_TRUE(client_->PutProfile(SmallProfile(), Soon()).ok());
  const Sequence sequence(9, 2 * kS);
  const auto committed = Put(sequence, v1::DURABILITY_UNSPECIFIED);
  ASSERT_TRUE(committed.ok());
  EXPECT_EQ(committed->durability(), v1::DURABILITY_MEMORY);
  server_->Signal(SIGTERM);
  EXPECT_EQ(server_->Wait(), 0) << server_->err();
  Start();
  EXPECT_EQ(Match(sequence).segments_size(), 2);
}

TEST_F(DiskServerTest, EncryptedItNeedsItsKeyAfterAKill) {
  const std::string keys = directory_.path() + "/keys";
  std::ofstream(keys) << std::string(64, 'a') << "\n";
  ASSERT_EQ(chmod(keys.c_str(), 0400), 0);
  Start({"--disk-key-file", keys});
  ASSERT_TRUE(client_->PutProfile(SmallProfile(), Soon()).ok());
  const Sequence sequence(10, 3 * kS);
  ASSERT_TRUE(Put(sequence, v1::DURABILITY_DISK).ok());
  Kill();
  const auto start_with = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"--listen", "127.0.0.1:0", "--metrics",
                                          "",         "--disk-path", directory_.path() + "/tier"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunProgram("fourierkv-server", arguments);
  };
  const Ended none = start_with({});
  EXPECT_EQ(none.status, 1);
  EXPECT_THAT(none.err, HasSubstr("is encrypted: give its keys with --disk-key-file"));
  const std::string others = directory_.path() + "/others";
  std::ofstream(others) << std::string(64, 'b') << "\n";
  ASSERT_EQ(chmod(others.c_str(), 0644), 0);
  const Ended open = start_with({"--disk-key-file", others});
  EXPECT_EQ(open.status, 1);
  EXPECT_THAT(open.err, HasSubstr("others can access it"));
  ASSERT_EQ(chmod(others.c_str(), 0400), 0);
  const Ended wrong = start_with({"--disk-key-file", others});
  EXPECT_EQ(wrong.status, 1);
  EXPECT_THAT(wrong.err, HasSubstr("none opens"));
  Start({"--disk-key-file", keys});
  EXPECT_EQ(Match(sequence).segments_size(), 3);
}

TEST_F(DiskServerTest, ADirectoryInUseEndsTheSecondServerWithAMessage) {
  Start();
  const Ended second = RunProgram("fourierkv-server", {"--listen", "127.0.0.1:0", "--metrics", "",
                                                       "--disk-path", directory_.path() + "/tier"});
  EXPECT_EQ(second.status, 1);
  EXPECT_THAT(second.err, HasSubstr("in use by another process"));
}

}  // namespace
}  // namespace fourierkv
