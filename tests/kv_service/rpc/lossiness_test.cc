// The contract of lossiness on the wire: lossless forms, and bounds on errors.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "compute/codec/lossless_codec.h"
#include "tests/kv_service/core/core_fixtures.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr auto kExact = v1::SEGMENT_FORM_EXACT;
constexpr auto kCompact = v1::SEGMENT_FORM_COMPACT;
constexpr auto kLossless = v1::SEGMENT_FORM_LOSSLESS;
constexpr auto kArchived = v1::SEGMENT_FORM_ARCHIVED;
constexpr float kTiny = 1e-6f;  // nothing that is encoded is so good

class LossinessTest : public testing::Test {
 protected:
  LossinessTest() {
    const auto id = service_.client().PutProfile(SmallProfile(), Soon());
    EXPECT_TRUE(id.ok()) << id.status();
  }
  v1::PutCommitted MustPut(const v1::PutHeader& header) {
    auto committed = PutSequence(service_.client(), header, sequence_);
    EXPECT_TRUE(committed.ok()) << committed.status();
    return committed.ok() ? *committed : v1::PutCommitted();
  }
  Fetched MustFetch(const v1::GetSegmentsRequest& request) {
    auto fetched = Fetch(service_.client(), request);
    EXPECT_TRUE(fetched.ok()) << fetched.status();
    return fetched.ok() ? *std::move(fetched) : Fetched();
  }
  v1::GetSegmentsRequest Get(const std::vector<v1::SegmentForm>& forms, float bound = 0) {
    v1::GetSegmentsRequest request = MakeGet(keys_, forms);
    request.set_max_relative_error(bound);
    return request;
  }
  void ExpectBits(const Fetched& fetched, int segment) {
    for (int layer = 0; layer < kSmall.layers; ++layer) {
      for (const Part part : kParts) {
        EXPECT_EQ(fetched.Values(segment, layer, part), sequence_.PartOf(segment, layer, part));
      }
    }
  }

  TestService service_;
  const v1::CacheNamespace ns_ = SmallWireNamespace();
  const Sequence sequence_{std::random_device{}(), 3 * kS + 7};
  const std::vector<std::string> keys_ = KeysOf(ns_, sequence_);
};

TEST_F(LossinessTest, ExactDataKeptLosslessComesBackBitForBit) {
  v1::PutHeader header = MakePutHeader(ns_, sequence_);
  header.set_exact_form(kLossless);
  const v1::PutCommitted committed = MustPut(header);
  EXPECT_EQ(committed.exact_bytes(), 0);
  EXPECT_GT(committed.lossless_bytes(), 0);
  EXPECT_EQ(service_.Stats().lossless_bytes(), committed.lossless_bytes());
  EXPECT_EQ(service_.Stats().exact_bytes(), 0);

  const Fetched exact = MustFetch(Get({kExact}));
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(exact.plan.segments(i).form(), kExact);
    EXPECT_EQ(exact.plan.segments(i).max_relative_error(), 0);
    ExpectBits(exact, i);
  }
  const Fetched lossless = MustFetch(Get({kExact, kLossless}));
  uint64_t bytes = 0;
  for (const auto& [where, blob] : lossless.blobs) {
    const auto& [segment, layer, part] = where;
    ASSERT_EQ(blob.header.form, SegmentForm::kLossless) << "what is held comes first";
    std::vector<uint16_t> values(sequence_.PartOf(segment, layer, part).size());
    ASSERT_TRUE(LosslessDecode(BlobPayload(blob.bytes.span()), values).ok());
    EXPECT_EQ(values, sequence_.PartOf(segment, layer, part));
    bytes += blob.bytes.size();
  }
  uint64_t announced = 0;
  for (const v1::SegmentPlan& plan : lossless.plan.segments()) announced += plan.bytes();
  EXPECT_EQ(announced, bytes);
}

TEST_F(LossinessTest, APrefixMatchNamesTheLosslessForm) {
  v1::PutHeader header = MakePutHeader(ns_, sequence_, /*keep_exact_from=*/2);
  header.set_exact_form(kLossless);
  MustPut(header);
  v1::MatchPrefixRequest request;
  *request.mutable_namespace_() = ns_;
  request.mutable_token_ids()->Assign(sequence_.tokens().begin(), sequence_.tokens().end());
  const auto match = service_.client().MatchPrefix(request, Soon());
  ASSERT_TRUE(match.ok()) << match.status();
  std::vector<std::string> held;
  for (const v1::MatchedSegment& segment : match->segments()) {
    std::string forms;
    for (const v1::HeldForm& form : segment.forms()) {
      absl::StrAppend(&forms, v1::SegmentForm_Name(form.form()).substr(13), " ");
    }
    held.push_back(forms);
  }
  EXPECT_THAT(held, ElementsAre("LOSSLESS ", "COMPACT ", "COMPACT LOSSLESS ", "LOSSLESS "));
}

TEST_F(LossinessTest, LosslessPayloadSavesTheWire) {
  v1::PutHeader header = MakePutHeader(ns_, sequence_);
  header.set_payload_form(kLossless);
  auto put = service_.client().Put(header, Soon());
  ASSERT_TRUE(put.ok()) << put.status();
  for (int64_t i = 0; i < sequence_.segments(); ++i) {
    for (int layer = 0; layer < kSmall.layers; ++layer) {
      for (const Part part : kParts) {
        const std::vector<uint16_t> values = sequence_.PartOf(i, layer, part);
        std::vector<std::byte> blob(kBlobHeaderBytes + LosslessBound(values.size()));
        const auto size = LosslessEncode(values, std::span(blob).subspan(kBlobHeaderBytes));
        ASSERT_TRUE(size.ok());
        blob.resize(kBlobHeaderBytes + *size);
        BlobHeader h;
        h.form = SegmentForm::kLossless;
        h.part = part;
        h.layer = static_cast<uint32_t>(layer);
        h.tokens = static_cast<uint32_t>(sequence_.SegmentTokens(i));
        h.kv_heads = static_cast<uint16_t>(kSmall.kv_heads);
        h.head_dim = static_cast<uint16_t>(kSmall.head_dim);
        h.payload_bytes = *size;
        h.block_key = (*put)->keys()[i];
        h.first_token = static_cast<uint64_t>(i) * kS;
        SealBlob(h, blob);
        const absl::Status sent = (*put)->Send(i, layer, part, blob);
        ASSERT_TRUE(sent.ok()) << sent;
      }
    }
  }
  const auto committed = (*put)->Commit();
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_LT(committed->payload_bytes_received(),
            kSmall.DenseBytes(static_cast<int64_t>(sequence_.tokens().size())));
  const Fetched exact = MustFetch(Get({kExact}));
  for (int i = 0; i < 4; ++i) ExpectBits(exact, i);
}

TEST_F(LossinessTest, AFetchWithABoundGetsWhatKeepsIt) {
  v1::PutHeader header = MakePutHeader(ns_, sequence_, /*keep_exact_from=*/3);
  header.set_max_relative_error(kTiny);
  EXPECT_EQ(MustPut(header).bounded_segments(), 2);

  const Fetched compact = MustFetch(Get({kCompact, kExact}));
  const float error = compact.plan.segments(1).max_relative_error();
  EXPECT_EQ(compact.plan.segments(1).form(), kCompact);
  EXPECT_GT(error, kTiny);
  EXPECT_EQ(MustFetch(Get({kCompact, kExact}, error)).plan.segments(1).form(), kCompact);

  const Fetched bounded = MustFetch(Get({kCompact, kExact}, kTiny));
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(bounded.plan.segments(i).form(), kExact) << i;
    EXPECT_EQ(bounded.plan.segments(i).max_relative_error(), 0);
    ExpectBits(bounded, i);
  }
  const Fetched none = MustFetch(Get({kCompact}, kTiny));
  EXPECT_EQ(none.plan.segments(1).missing_reason(), v1::MISSING_REASON_ERROR_BOUND);
  EXPECT_EQ(none.plan.segments(1).max_relative_error(), error) << "the bound that it would take";
  EXPECT_EQ(none.plan.segments(3).missing_reason(), v1::MISSING_REASON_FORM_NOT_HELD);
  EXPECT_TRUE(none.blobs.empty());
}

TEST_F(LossinessTest, ABoundTellsNothingOfForeignSegments) {
  MustPut(MakePutHeader(ns_, sequence_, 3));
  v1::GetSegmentsRequest request = Get({kCompact}, kTiny);
  *request.mutable_namespace_() = ns_;
  request.mutable_namespace_()->set_tenant_salt("another");
  const Fetched fetched = MustFetch(request);
  for (const v1::SegmentPlan& plan : fetched.plan.segments()) {
    EXPECT_EQ(plan.missing_reason(), v1::MISSING_REASON_NOT_STORED);
    EXPECT_EQ(plan.max_relative_error(), 0);
  }
}

TEST_F(LossinessTest, DamagedLosslessBytesAreNeverServed) {
  v1::PutHeader header = MakePutHeader(ns_, sequence_, 3);
  header.set_exact_form(kLossless);
  MustPut(header);
  const Digest sink = *Digest::FromRaw(keys_[0], "key");
  const auto stored = service_.core().store.Get({&sink, 1});
  Damage(stored[0]->forms[SegmentForm::kLossless]->blob(1, Part::kV), 120);
  EXPECT_EQ(Fetch(service_.client(), Get({kExact, kCompact})).status().code(),
            StatusCode::kDataLoss);
  EXPECT_EQ(service_.Stats().corrupt_segments(), 1);
  EXPECT_EQ(MustPut(header).stored_segments(), 0);
  ExpectBits(MustFetch(Get({kExact, kCompact})), 3);
  const Fetched repaired = MustFetch(MakeGet({keys_[0]}, {kExact}));
  EXPECT_EQ(repaired.Values(0, 1, Part::kV), sequence_.PartOf(0, 1, Part::kV));
}

TEST_F(LossinessTest, WhatCannotBeAskedForIsRefusedByName) {
  for (const float bound : {-0.5f, std::numeric_limits<float>::quiet_NaN()}) {
    const auto fetched = Fetch(service_.client(), Get({kCompact}, bound));
    EXPECT_EQ(fetched.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(fetched.status().ToString(), HasSubstr("max_relative_error"));
    v1::PutHeader header = MakePutHeader(ns_, sequence_);
    header.set_max_relative_error(bound);
    EXPECT_THAT(service_.client().Put(header, Soon()).status().ToString(),
                HasSubstr("header.max_relative_error"));
  }
  const auto put = [&](auto&& change) {
    v1::PutHeader header = MakePutHeader(ns_, sequence_);
    change(header);
    return service_.client().Put(header, Soon()).status();
  };
  EXPECT_EQ(put([](v1::PutHeader& h) { h.set_exact_form(kCompact); }).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(put([](v1::PutHeader& h) { h.set_exact_form(kArchived); }).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(put([](v1::PutHeader& h) { h.set_compressed_form(kExact); }).code(),
            StatusCode::kInvalidArgument);
  EXPECT_THAT(put([](v1::PutHeader& h) { h.set_compressed_form(kArchived); }).ToString(),
              HasSubstr("no profile with an archive section"));
  EXPECT_EQ(put([](v1::PutHeader& h) { h.set_payload_form(kArchived); }).code(),
            StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace fourierkv
