// Whole sequences over gRPC.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>

#include "compute/codec/sequence_layout.h"
#include "compute/codec/sequence_payload_check.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

class SequenceServiceTest : public testing::Test {
 protected:
  SequenceServiceTest() {
    EXPECT_TRUE(service_.client().PutProfile(SmallSequenceProfile(), Soon()).ok());
    ns_ = SmallWireNamespace();
    ns_.set_profile_id(SmallSequenceProfile().Id().ToString());
    ns_.set_segment_tokens(0);
  }

  v1::PutHeader Header(const std::vector<uint32_t>& tokens, uint64_t capacity) const {
    v1::PutHeader header;
    *header.mutable_namespace_() = ns_;
    header.mutable_token_ids()->Assign(tokens.begin(), tokens.end());
    header.set_payload_form(v1::SEGMENT_FORM_EXACT);
    header.set_sequence_capacity(capacity);
    return header;
  }

  // The key it is stored under.
  std::string MustPut(const std::vector<uint32_t>& tokens, uint64_t capacity) {
    auto put = service_.client().Put(Header(tokens, capacity), Soon());
    EXPECT_TRUE(put.ok()) << put.status();
    EXPECT_TRUE((*put)->needs(0));
    k_ = RandomPart(rng_, kSmall, static_cast<int>(tokens.size()));
    for (int layer = 0; layer < kSmall.layers; ++layer) {
      for (const Part part : kParts) {
        const absl::Status sent = (*put)->Send(0, layer, part, AsBytes(k_));
        EXPECT_TRUE(sent.ok()) << sent;
      }
    }
    const auto committed = (*put)->Commit();
    EXPECT_TRUE(committed.ok()) << committed.status();
    return (*put)->keys().at(0).ToString();
  }

  absl::StatusOr<v1::MatchPrefixResponse> Match(const std::vector<uint32_t>& tokens,
                                                uint64_t capacity) {
    v1::MatchPrefixRequest request;
    *request.mutable_namespace_() = ns_;
    request.mutable_token_ids()->Assign(tokens.begin(), tokens.end());
    request.set_sequence_capacity(capacity);
    return service_.client().MatchPrefix(request, Soon());
  }

  int Matched(const std::vector<uint32_t>& tokens, uint64_t capacity) {
    const auto match = Match(tokens, capacity);
    EXPECT_TRUE(match.ok()) << match.status();
    return match.ok() ? static_cast<int>(match->matched_tokens()) : -1;
  }

  std::mt19937 rng_{7};
  TestService service_;
  v1::CacheNamespace ns_;
  std::vector<uint16_t> k_;  // every part of the last put
};

TEST_F(SequenceServiceTest, MatchesAsAWholeAndWithItsCapacityOnly) {
  const auto tokens = RandomTokens(rng_, 300);
  const std::string key = MustPut(tokens, 400);
  const auto match = Match(tokens, 400);
  ASSERT_TRUE(match.ok()) << match.status();
  ASSERT_EQ(match->segments_size(), 1);
  EXPECT_EQ(match->segments(0).block_key(), key);
  EXPECT_EQ(match->segments(0).tokens(), 300);
  EXPECT_EQ(match->segments(0).forms_size(), 2);
  EXPECT_EQ(Matched(tokens, 401), 0);
  std::vector<uint32_t> other(tokens.begin(), tokens.end() - 1);
  EXPECT_EQ(Matched(other, 400), 0);
  other = tokens;
  other.push_back(1);
  EXPECT_EQ(Matched(other, 400), 0);
  // And it is stored already.
  auto again = service_.client().Put(Header(tokens, 400), Soon());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_FALSE((*again)->needs(0));
  EXPECT_EQ((*again)->Commit()->deduplicated_segments(), 1);
}

TEST_F(SequenceServiceTest, LongOnesArriveWholeInPieces) {
  constexpr int kLong = 40'000;  // 1.3 MB a part
  const auto tokens = RandomTokens(rng_, kLong);
  const std::string key = MustPut(tokens, kLong + 100);
  const auto layout = SequenceLayout(SmallSequenceProfile());
  const auto fetched = Fetch(service_.client(), MakeGet({key, key, key}, {v1::SEGMENT_FORM_EXACT}));
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(fetched->Values(2, 1, Part::kV), k_);
  const auto compact = Fetch(service_.client(), MakeGet({key}, {v1::SEGMENT_FORM_COMPACT}));
  ASSERT_TRUE(compact.ok()) << compact.status();
  for (int layer = 0; layer < kSmall.layers; ++layer) {
    for (const Part part : kParts) {
      const auto payload = BlobPayload(compact->blobs.at({0, layer, part}).bytes.span());
      const absl::Status sound = CheckSequencePayload(layout.part(layer, part), kLong, kLong + 100,
                                                      KvDtype::kBf16, payload);
      EXPECT_TRUE(sound.ok()) << sound;
    }
  }
  const auto dense = Fetch(service_.client(), MakeGet({key}, {v1::SEGMENT_FORM_DENSE}));
  ASSERT_TRUE(dense.ok()) << dense.status();
  EXPECT_EQ(dense->Values(0, 0, Part::kK).size(), k_.size());
  EXPECT_FLOAT_EQ(dense->plan.segments(0).max_relative_error(),
                  compact->plan.segments(0).max_relative_error());
}

TEST_F(SequenceServiceTest, BadCapacitiesAreRefusedByName) {
  const auto tokens = RandomTokens(rng_, 300);
  for (const uint64_t capacity : {uint64_t{0}, uint64_t{299}, uint64_t{1} << 20 | 1, UINT64_MAX}) {
    const absl::Status put = service_.client().Put(Header(tokens, capacity), Soon()).status();
    EXPECT_EQ(put.code(), StatusCode::kInvalidArgument) << capacity;
    EXPECT_THAT(put.ToString(), HasSubstr("sequence_capacity"));
    const absl::Status match = Match(tokens, capacity).status();
    EXPECT_EQ(match.code(), StatusCode::kInvalidArgument) << capacity;
    EXPECT_THAT(match.ToString(), HasSubstr("sequence_capacity"));
  }
  ns_ = SmallWireNamespace();  // of segments
  const absl::Status match = Match(tokens, 400).status();
  EXPECT_EQ(match.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(match.ToString(), HasSubstr("sequence_capacity"));
}

TEST_F(SequenceServiceTest, ANamespaceMustSayThatItHasNoSegments) {
  ns_.set_segment_tokens(128);
  const absl::Status put =
      service_.client().Put(Header(RandomTokens(rng_, 300), 400), Soon()).status();
  EXPECT_EQ(put.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(put.ToString(), HasSubstr("segment_tokens is 128; the codec profile has 0"));
}

// A server that announces a segment of 1000 bytes and then begins a blob of the largest size.
class Liar final : public v1::KvCacheService::Service {
 public:
  grpc::Status GetSegments(grpc::ServerContext*, const v1::GetSegmentsRequest*,
                           grpc::ServerWriter<v1::GetSegmentsResponse>* writer) override {
    v1::GetSegmentsResponse response;
    response.mutable_plan()->add_segments()->set_bytes(1000);
    writer->Write(response);
    v1::BlobPiece* piece = response.mutable_batch()->add_pieces();
    piece->set_part(v1::KV_PART_K);
    piece->set_blob_bytes(kMaxBlobBytes);
    piece->set_data("x");
    writer->Write(response);
    return grpc::Status::OK;
  }
};

TEST(KvClientTest, MakesNoRoomForMoreThanWasPlanned) {
  Liar liar;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&liar);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  auto client = KvClient::Connect("127.0.0.1:" + std::to_string(port), absl::Seconds(10));
  ASSERT_TRUE(client.ok()) << client.status();
  const absl::Status status =
      Fetch(**client, MakeGet({std::string(32, 'k')}, {v1::SEGMENT_FORM_EXACT})).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(status.ToString(), HasSubstr("a blob of 1073741824 bytes is out of bounds"));
}

}  // namespace
}  // namespace fourierkv
