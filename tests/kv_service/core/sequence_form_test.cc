// Whole sequences put, held and read: segments of a profile in the published form.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <tuple>

#include "compute/base/bfloat16.h"
#include "compute/codec/sequence_layout.h"
#include "compute/codec/sequence_reference.h"
#include "core_fixtures.h"
#include "kv_service/core/blob_identity.h"
#include "kv_service/core/segment_reader.h"

namespace fourierkv {
namespace {

using ::testing::HasSubstr;
using Code = absl::StatusCode;

constexpr SegmentForm kE = SegmentForm::kExact;
constexpr SegmentForm kC = SegmentForm::kCompact;
constexpr SegmentForm kD = SegmentForm::kDense;
constexpr SegmentForm kL = SegmentForm::kLossless;

constexpr int kTokens = 101;
constexpr int64_t kCapacity = 157;

class SequenceFormTest : public testing::Test {
 protected:
  SequenceFormTest() {
    for (int layer = 0; layer < kSmall.layers; ++layer) {
      for (const Part part : kParts) parts_[{layer, part}] = RandomPart(rng_, kSmall, kTokens);
    }
  }

  // Kept compact only.
  PutPlan Plan() const {
    PutPlan plan;
    plan.context = context_;
    plan.token_ids = tokens_;
    plan.keep_exact_from = 1;
    plan.sequence_capacity = kCapacity;
    return plan;
  }

  std::unique_ptr<PutSession> Begin(PutPlan plan) {
    auto session = puts_.Begin(std::move(plan));
    EXPECT_TRUE(session.ok()) << session.status();
    return *std::move(session);
  }

  PutStats Put(PutPlan plan) {
    const auto session = Begin(std::move(plan));
    const absl::Status sent = SendAll(*session, [this](int64_t, int layer, Part part) {
      return parts_[{layer, part}];
    });
    EXPECT_TRUE(sent.ok()) << sent;
    const auto stats = session->Commit();
    EXPECT_TRUE(stats.ok()) << stats.status();
    return stats.value_or(PutStats());
  }

  BlockKey Key() const { return SequenceKey(context_->root, kCapacity, tokens_); }

  OpenSegment Open(std::vector<SegmentForm> forms) {
    const SegmentWant want{.key = Key(), .forms = std::move(forms)};
    auto open = reader_.Open({&want, 1});
    EXPECT_TRUE(open.ok()) << open.status();
    return (*open)[0];
  }

  // Both parts of a layer.
  LayerRead Read(OpenSegment& open, int layer) {
    auto read = reader_.ReadLayer({&open, 1}, layer);
    EXPECT_TRUE(read.ok()) << read.status();
    return (*read)[0];
  }

  const SequencePart& LayoutOf(int layer, Part part) const {
    return context_->sequence()->part(layer, part);
  }

  std::vector<std::byte> ReferencePayload(int layer, Part part) {
    std::vector<std::byte> payload(LayoutOf(layer, part).PayloadBytes(kTokens));
    reference::EncodeSequence(LayoutOf(layer, part), kTokens, kCapacity, KvDtype::kBf16,
                              parts_[{layer, part}], payload);
    return payload;
  }

  // A whole compact blob as a client that encodes by itself would send it.
  std::vector<std::byte> CompactBlob(int layer, Part part, std::span<const std::byte> payload) {
    StoredSegment segment;
    segment.key = Key();
    segment.context = context_;
    segment.tokens = kTokens;
    segment.capacity = kCapacity;
    std::vector<std::byte> blob(kBlobHeaderBytes + payload.size());
    std::copy(payload.begin(), payload.end(), blob.begin() + kBlobHeaderBytes);
    SealBlob(ExpectedHeader(segment, kC, layer, part, 0.125f), blob);
    return blob;
  }

  absl::Status Send(PutSession& session, int layer, Part part, std::span<const std::byte> bytes) {
    return session.AddChunk(0, layer, part, 0, bytes, Checksum(bytes));
  }

  const uint32_t seed_ = std::random_device()();
  testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
  std::mt19937 rng_{seed_};
  std::shared_ptr<const NamespaceContext> context_ = SmallSequenceContext();
  std::vector<uint32_t> tokens_ = RandomTokens(rng_, kTokens);
  std::map<std::tuple<int, Part>, std::vector<uint16_t>> parts_;
  ReferenceBackend backend_;
  StoreFixture fixture_;
  PutManager puts_{&fixture_.store, &backend_, 4};
  SegmentReader reader_{&fixture_.store, &backend_,
                        MemoryBudget::Create("scratch", int64_t{16} << 20)};
};

double Distance(std::span<const double> a, std::span<const double> b) {
  double error = 0, energy = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    energy += a[i] * a[i];
  }
  return std::sqrt(error / energy);
}

TEST_F(SequenceFormTest, IsEncodedAsTheReferenceDoesIt) {
  const PutStats stats = Put(Plan());
  EXPECT_EQ(stats.segments_stored, 1);
  EXPECT_EQ(stats.exact_bytes, 0);
  EXPECT_EQ(stats.compact_bytes,
            context_->sequence()->PayloadBytes(kTokens) + 4 * int64_t{kBlobHeaderBytes});
  OpenSegment open = Open({kC});
  ASSERT_EQ(open.missing, MissingReason::kNone);
  EXPECT_EQ(open.Bytes(0, 2), stats.compact_bytes);
  for (int layer = 0; layer < kSmall.layers; ++layer) {
    const LayerRead read = Read(open, layer);
    for (const Part part : kParts) {
      const auto blob = (part == Part::kK ? read.k : read.v)->bytes();
      const auto header = OpenBlob(blob);
      ASSERT_TRUE(header.ok()) << header.status();
      EXPECT_EQ(header->tokens, kTokens);
      EXPECT_EQ(header->first_token, 0);
      const auto decoded =
          reference::DecodeSequence(LayoutOf(layer, part), KvDtype::kBf16, BlobPayload(blob));
      const auto expected = reference::DecodeSequence(LayoutOf(layer, part), KvDtype::kBf16,
                                                      ReferencePayload(layer, part));
      EXPECT_LT(Distance(expected, decoded), 1e-5);
      std::vector<double> original;
      for (const uint16_t value : parts_[{layer, part}]) original.push_back(Bf16ToFloat(value));
      EXPECT_NEAR(header->relative_error, Distance(original, decoded), 1e-4);
    }
  }
}

TEST_F(SequenceFormTest, DenseIsWhatCompactDecodesTo) {
  Put(Plan());
  OpenSegment compact = Open({kC}), dense = Open({kD});
  EXPECT_EQ(Open({kE, kL}).missing, MissingReason::kFormNotHeld);
  const auto decoded = reference::DecodeSequence(LayoutOf(1, Part::kV), KvDtype::kBf16,
                                                 BlobPayload(Read(compact, 1).v->bytes()));
  const LayerRead made = Read(dense, 1);
  const auto blob = made.v->bytes();
  ASSERT_TRUE(OpenBlob(blob).ok()) << OpenBlob(blob).status();
  const auto* values = reinterpret_cast<const uint16_t*>(BlobPayload(blob).data());
  for (size_t i = 0; i < decoded.size(); ++i) {
    ASSERT_NEAR(Bf16ToFloat(values[i]), decoded[i], 1e-4 + 0x1p-8 * std::fabs(decoded[i])) << i;
  }
}

TEST_F(SequenceFormTest, ExactDataIsKeptAsAskedAndGoesFirst) {
  PutPlan plan = Plan();
  plan.keep_exact_from = 0;
  plan.exact_form = kL;
  Put(std::move(plan));
  OpenSegment open = Open({kE});
  ASSERT_EQ(open.missing, MissingReason::kNone);
  const LayerRead read = Read(open, 1);
  EXPECT_EQ(std::memcmp(BlobPayload(read.v->bytes()).data(), parts_[{1, Part::kV}].data(),
                        kTokens * 16 * 2),
            0);
  // Decoders read the compact form; nothing follows, so exact data serves nobody else.
  fixture_.store.Evict(1);
  EXPECT_EQ(Open({kE}).missing, MissingReason::kFormNotHeld);
  EXPECT_EQ(Open({kC}).missing, MissingReason::kNone);
}

TEST_F(SequenceFormTest, CompactIsMadeOfExactDataOnDemand) {
  PutPlan plan = Plan();
  plan.keep_exact_from = 0;
  Put(std::move(plan));
  OpenSegment put = Open({kC});
  const FormPtr held = put.source;
  std::vector<std::byte> first(Read(put, 0).k->bytes().begin(), Read(put, 0).k->bytes().end());
  fixture_.store.DropDamaged(Key(), held);
  OpenSegment made = Open({kC});
  ASSERT_EQ(made.missing, MissingReason::kNone);
  EXPECT_NE(made.source, held);
  const auto again = Read(made, 0).k->bytes();
  EXPECT_TRUE(std::equal(first.begin(), first.end(), again.begin(), again.end()));
}

TEST_F(SequenceFormTest, TheSameSequenceIsNotSentTwice) {
  Put(Plan());
  const auto again = Begin(Plan());
  EXPECT_EQ(again->needed_segments(), 0);
  const auto stats = again->Commit();
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_EQ(stats->segments_deduplicated, 1);
  // Another capacity is another basis; a longer sequence another sequence.
  PutPlan other = Plan();
  other.sequence_capacity = kCapacity + 1;
  EXPECT_EQ(Begin(other)->needed_segments(), 1);
  other = Plan();
  other.token_ids.push_back(1);
  EXPECT_EQ(Begin(other)->needed_segments(), 1);
}

TEST_F(SequenceFormTest, ADamagedBlobIsMissedNotServed) {
  Put(Plan());
  Damage(Open({kC}).source->blob(1, Part::kV), kBlobHeaderBytes + 500);
  OpenSegment open = Open({kC});
  EXPECT_EQ(Read(open, 0).missing, MissingReason::kNone);
  EXPECT_EQ(Read(open, 1).missing, MissingReason::kCorrupt);
  EXPECT_EQ(Open({kC}).missing, MissingReason::kNotStored);
  EXPECT_EQ(Begin(Plan())->needed_segments(), 1);
}

TEST_F(SequenceFormTest, CompactPayloadIsTakenIfItIsSound) {
  PutPlan plan = Plan();
  plan.payload = PutPayload::kCompact;
  const auto session = Begin(plan);
  for (int layer = 0; layer < kSmall.layers; ++layer) {
    for (const Part part : kParts) {
      const auto blob = CompactBlob(layer, part, ReferencePayload(layer, part));
      const absl::Status sent = Send(*session, layer, part, blob);
      ASSERT_TRUE(sent.ok()) << sent;
    }
  }
  ASSERT_TRUE(session->Commit().ok());
  EXPECT_EQ(Open({kC}).max_relative_error, 0.125f);
  EXPECT_EQ(Open({kE}).missing, MissingReason::kFormNotHeld);
}

TEST_F(SequenceFormTest, HostilePayloadsAreRefused) {
  const auto refusal = [&](int64_t at, uint32_t word) {
    PutPlan plan = Plan();
    plan.payload = PutPayload::kCompact;
    std::vector<std::byte> payload = ReferencePayload(0, Part::kK);
    std::memcpy(payload.data() + at, &word, sizeof word);
    const absl::Status status = Send(*Begin(plan), 0, Part::kK, CompactBlob(0, Part::kK, payload));
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(refusal(0, kTokens + 1), HasSubstr("tokens is"));
  EXPECT_THAT(refusal(4, kCapacity + 1), HasSubstr("capacity is"));
  EXPECT_THAT(refusal(8, 0xffffffff), HasSubstr("middle tokens is"));
  const SequencePart& layout = LayoutOf(0, Part::kK);
  const auto places = layout.Place(0, layout.HeadsOffset(kTokens), kTokens - 32);
  EXPECT_THAT(refusal(places.coefficients, 0x7fc00000), HasSubstr("coefficient 0 is nan"));
  EXPECT_THAT(refusal(places.residents, 0x7f80), HasSubstr("resident 0 is inf"));
}

TEST_F(SequenceFormTest, ValuesThatCannotBeEncodedAreRefused) {
  const auto session = Begin(Plan());
  std::vector<uint16_t> values = parts_[{1, Part::kV}];
  values[50 * 8 + 3] = 0x7f80;
  ASSERT_TRUE(Send(*session, 1, Part::kV, AsBytes(values)).ok());  // waits for the encoder
  for (const auto& [place, sound] : parts_) {
    const auto [layer, part] = place;
    if (layer == 1 && part == Part::kV) continue;
    ASSERT_TRUE(Send(*session, layer, part, AsBytes(sound)).ok());
  }
  const absl::Status status = session->Commit().status();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("layer 1 V: head 0, token 50"));
}

TEST_F(SequenceFormTest, BadPlansAreRefusedByField) {
  const auto fault = [&](const std::function<void(PutPlan&)>& spoil) {
    PutPlan plan = Plan();
    spoil(plan);
    const absl::Status status = puts_.Begin(std::move(plan)).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << status;
    return std::string(status.message());
  };
  for (const int64_t capacity : {int64_t{0}, int64_t{kTokens - 1}, int64_t{-1},
                                 kMaxSequenceTokens + 1, INT64_MAX, INT64_MIN}) {
    EXPECT_THAT(fault([&](PutPlan& plan) { plan.sequence_capacity = capacity; }),
                HasSubstr("sequence_capacity"));
  }
  EXPECT_THAT(fault([](PutPlan& plan) { plan.token_ids.clear(); }), HasSubstr("token_ids"));
  EXPECT_THAT(fault([](PutPlan& plan) { plan.first_segment_index = 1; }),
              HasSubstr("first_segment_index"));
  EXPECT_THAT(fault([](PutPlan& plan) { plan.parent = Digest{}; }), HasSubstr("parent_key"));
  EXPECT_THAT(fault([](PutPlan& plan) { plan.compressed_form = SegmentForm::kArchived; }),
              HasSubstr("compressed_form"));
  EXPECT_THAT(fault([](PutPlan& plan) { plan.context = SmallContext(); }),
              HasSubstr("sequence_capacity"));
}

TEST_F(SequenceFormTest, WhatDoesNotFitIntoABlobIsRefusedBeforeAnythingIsAllocated) {
  CodecProfile profile = SmallSequenceProfile();
  profile.geometry = {.layers = 1, .kv_heads = 256, .head_dim = 512};
  Band all{0, 16, {}};
  for (int d = 0; d < 512; ++d) all.channels.push_back(static_cast<uint16_t>(d));
  profile.heads.assign(256 * 2, HeadProfile{.bands = {all}});
  const auto layout = std::make_shared<const ProfileLayout>(profile);
  CacheNamespace ns = context_->ns;
  ns.geometry = profile.geometry;
  ns.profile_id = layout->id();
  PutPlan plan = Plan();
  plan.context = *MakeNamespaceContext(ns, layout);
  plan.sequence_capacity = 5000;
  plan.token_ids.assign(4097, 1);
  const absl::Status status = puts_.Begin(plan).status();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("fit into a blob"));
  plan.token_ids.resize(4000);
  EXPECT_TRUE(puts_.Begin(plan).ok());
  EXPECT_EQ(fixture_.budget->used(), 0);
}

TEST_F(SequenceFormTest, ASequenceTooShortForStatesIsHeldExactly) {
  tokens_.resize(60);
  for (auto& [place, values] : parts_) values = RandomPart(rng_, kSmall, 60);
  EXPECT_EQ(Put(Plan()).max_relative_error, 0);
  OpenSegment open = Open({kC});
  const auto payload = BlobPayload(Read(open, 0).k->bytes());
  EXPECT_EQ(
      std::memcmp(payload.data() + kSequencePrefixBytes, parts_[{0, Part::kK}].data(), 60 * 16 * 2),
      0);
}

}  // namespace
}  // namespace fourierkv
