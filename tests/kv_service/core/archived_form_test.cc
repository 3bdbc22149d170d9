// Segments held, put and read in the ARCHIVED form.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <map>
#include <tuple>

#include "compute/base/bfloat16.h"
#include "compute/codec/archive_builder.h"
#include "compute/codec/rotation.h"
#include "core_fixtures.h"
#include "kv_service/core/blob_identity.h"
#include "kv_service/core/form_planner.h"
#include "kv_service/core/segment_reader.h"

namespace fourierkv {

namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Code = absl::StatusCode;

constexpr SegmentForm kE = SegmentForm::kExact;
constexpr SegmentForm kC = SegmentForm::kCompact;
constexpr SegmentForm kD = SegmentForm::kDense;
constexpr SegmentForm kL = SegmentForm::kLossless;
constexpr SegmentForm kA = SegmentForm::kArchived;

// An orthogonal matrix that mixes all channels; `n` is a power of 2.
std::vector<double> Hadamard(int n) {
  std::vector<double> u;
  for (unsigned i = 0; i < static_cast<unsigned>(n) * n; ++i) {
    const bool odd = std::popcount((i / n) & (i % n)) % 2 == 1;
    u.push_back((odd ? -1 : 1) / std::sqrt(n));
  }
  return u;
}

// The small model with a profile that rotates V and has an archive section which shares that.
std::shared_ptr<const NamespaceContext> ArchivingContext(std::mt19937& rng) {
  CodecProfile profile = UniformProfile(kSmall, 0.5, 0.5, 4, 8);
  profile.segment_tokens = kS;
  for (size_t i = static_cast<size_t>(Part::kV); i < profile.heads.size(); i += 2) {
    profile.heads[i].rotation = QuantizeRotation(Hadamard(kSmall.head_dim));
  }
  ArchiveStatistics statistics;
  statistics.rope_frequencies.assign(kSmall.head_dim / 2, 0.01);
  std::vector<ArchiveSample> samples;
  for (int layer = 0; layer < kSmall.layers; ++layer) {
    for (const Part part : kParts) {
      for (int i = 0; i < 4; ++i) {
        samples.push_back({.layer = layer, .part = part, .dense = RandomPart(rng, kSmall, kS)});
      }
    }
  }
  for (size_t i = 0; i < profile.heads.size(); ++i) {
    ArchiveHeadStatistics& head = statistics.heads.emplace_back();
    head.mean.assign(kSmall.head_dim, 0);
    head.sensitivity.assign(kSmall.head_dim, 1);
    for (int d = 0; d < kSmall.head_dim * kSmall.head_dim; ++d) {
      head.second_moment.push_back(d % (kSmall.head_dim + 1) == 0 ? 1 + d : 0);
    }
  }
  auto archive =
      BuildArchive(profile, statistics, {.step = 0.3, .share_v_rotation = true}, samples);
  EXPECT_TRUE(archive.ok()) << archive.status();
  profile.archive = *std::move(archive);
  auto layout = std::make_shared<const ProfileLayout>(profile);
  CacheNamespace ns = SmallNamespace();
  ns.profile_id = layout->id();
  return *MakeNamespaceContext(ns, layout);
}

double RelativeError(std::span<const std::byte> dense, const std::vector<uint16_t>& values) {
  double error = 0, energy = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double x = Bf16ToFloat(values[i]);
    const double difference = x - Bf16ToFloat(reinterpret_cast<const uint16_t*>(dense.data())[i]);
    error += difference * difference;
    energy += x * x;
  }
  return std::sqrt(error / energy);
}

class ArchivedFormTest : public testing::Test {
 protected:
  // 3 full segments and a tail of 5.
  PutPlan Plan(SegmentForm compressed_form, int64_t keep_exact_from = 3) {
    PutPlan plan;
    plan.context = context_;
    plan.token_ids = RandomTokens(rng_, 3 * kS + 5);
    plan.keep_exact_from = keep_exact_from;
    plan.compressed_form = compressed_form;
    chain_ = MakeChain(context_, plan.token_ids);
    keys_ = f_.Keys(chain_);
    values_.clear();
    return plan;
  }
  const std::vector<uint16_t>& Values(int64_t index, int layer, Part part) {
    auto& values = values_[{index, layer, static_cast<int>(part)}];
    if (values.empty()) values = RandomPart(rng_, kSmall, index == 3 ? 5 : kS);
    return values;
  }
  absl::Status Put(PutPlan plan) {
    auto session = puts_.Begin(std::move(plan));
    if (!session.ok()) return session.status();
    auto sent = SendAll(**session, [&](int64_t i, int l, Part p) { return Values(i, l, p); });
    if (!sent.ok()) return sent;
    const auto stats = (*session)->Commit();
    if (!stats.ok()) return stats.status();
    stats_ = *stats;
    return absl::OkStatus();
  }
  OpenSegment Open(int64_t index, std::vector<SegmentForm> forms, float bound = kNoErrorBound) {
    const SegmentWant want{keys_[index], std::move(forms), bound};
    auto open = reader_.Open(std::span(&want, 1));
    EXPECT_TRUE(open.ok()) << open.status();
    return (*open)[0];
  }
  LayerRead Read(OpenSegment& open, int layer) {
    auto read = reader_.ReadLayer(std::span(&open, 1), layer);
    EXPECT_TRUE(read.ok()) << read.status();
    return (*read)[0];
  }
  FormPtr Held(int64_t index, SegmentForm form) { return f_.store.Get(keys_)[index]->forms[form]; }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 rng_{seed_};
  std::shared_ptr<const NamespaceContext> context_ = ArchivingContext(rng_);
  StoreFixture f_;
  ReferenceBackend backend_;
  PutManager puts_{&f_.store, &backend_, 3};
  int damaged_ = 0;
  SegmentReader reader_{
      &f_.store, &backend_, MemoryBudget::Create("scratch memory", 1 << 20),
      [this](const BlockKey&, SegmentForm, int, Part, const absl::Status&) { ++damaged_; }};
  std::map<std::tuple<int64_t, int, int>, std::vector<uint16_t>> values_;
  std::vector<StoredSegment> chain_;
  std::vector<BlockKey> keys_;
  PutStats stats_;
};

TEST_F(ArchivedFormTest, APutMayAskForArchivedInsteadOfCompact) {
  ASSERT_TRUE(Put(Plan(kA, 2)).ok());
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(Held(i, kA) != nullptr, i == 1 || i == 2) << i;
    EXPECT_EQ(Held(i, kE) != nullptr, i != 1) << i;
    EXPECT_EQ(Held(i, kC), nullptr) << i;
  }
  EXPECT_EQ(stats_.archived_bytes, f_.store.Stats().forms[kA].bytes);
  EXPECT_EQ(stats_.compact_bytes, 0);
  EXPECT_EQ(stats_.encoded_dense_bytes, kSmall.DenseBytes(2 * kS));
  EXPECT_FLOAT_EQ(stats_.max_relative_error,
                  std::max(Held(1, kA)->max_relative_error(), Held(2, kA)->max_relative_error()));
  EXPECT_EQ(backend_.encode_calls, 0);
}

TEST_F(ArchivedFormTest, ASecondPutNeedsNothingMore) {
  PutPlan plan = Plan(kA);
  ASSERT_TRUE(Put(plan).ok());
  const auto again = puts_.Begin(plan);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ((*again)->needed_segments(), 0);
  plan.compressed_form = kC;
  const auto compact = puts_.Begin(plan);
  ASSERT_TRUE(compact.ok());
  EXPECT_EQ((*compact)->needed_segments(), 2) << "the better form must come from exact data";
}

TEST_F(ArchivedFormTest, DenseIsDecodedWithinTheStatedError) {
  ASSERT_TRUE(Put(Plan(kA)).ok());
  OpenSegment open = Open(1, {kD});
  for (int layer = 0; layer < kSmall.layers; ++layer) {
    const LayerRead read = Read(open, layer);
    for (const Part part : kParts) {
      const BlobPtr& blob = part == Part::kK ? read.k : read.v;
      ASSERT_NE(blob, nullptr);
      const auto header = OpenBlob(blob->bytes());
      ASSERT_TRUE(header.ok()) << header.status();
      EXPECT_EQ(header->form, kD);
      EXPECT_NEAR(RelativeError(BlobPayload(blob->bytes()), Values(1, layer, part)),
                  header->relative_error, 4e-3);
      EXPECT_LE(header->relative_error, open.max_relative_error);
    }
  }
}

TEST_F(ArchivedFormTest, CompactIsMadeOfArchivedAndKeptWithABoundOnItsError) {
  ASSERT_TRUE(Put(Plan(kA)).ok());
  OpenSegment open = Open(2, {kC});
  ASSERT_EQ(open.missing, MissingReason::kNone);
  ASSERT_NE(Held(2, kC), nullptr);
  EXPECT_NE(Held(2, kA), nullptr);
  EXPECT_GE(open.max_relative_error, Held(2, kA)->max_relative_error());
  OpenSegment dense = Open(2, {kD});
  EXPECT_EQ(dense.source->form(), kC);
  for (int layer = 0; layer < kSmall.layers; ++layer) {
    const LayerRead read = Read(dense, layer);
    for (const Part part : kParts) {
      const BlobPtr& blob = part == Part::kK ? read.k : read.v;
      EXPECT_LE(RelativeError(BlobPayload(blob->bytes()), Values(2, layer, part)),
                OpenBlob(blob->bytes())->relative_error + 4e-3);
    }
  }
}

TEST_F(ArchivedFormTest, CompactOfArchivedVIsMadeInTheRotatedChannelsThatTheyShare) {
  ASSERT_TRUE(Put(Plan(kA)).ok());
  OpenSegment dense = Open(1, {kD});
  const LayerRead decoded = Read(dense, 0);  // of ARCHIVED
  OpenSegment compact = Open(1, {kC});
  const LayerRead read = Read(compact, 0);
  ASSERT_NE(read.v, nullptr);
  const PartLayout& layout = context_->layout->part(0, Part::kV);
  std::vector<uint16_t> direct(kSmall.PartBytes(kS) / kKvDtypeBytes);
  const int64_t stride = int64_t{kS} * kSmall.head_dim;
  const DecodeJob job{&layout, BlobPayload(read.v->bytes()).data(), direct.data(), stride};
  ASSERT_TRUE(backend_.Decode(KvDtype::kBf16, std::span(&job, 1)).ok());
  // The other way: by the values that DENSE gives.
  const auto* const values =
      reinterpret_cast<const uint16_t*>(BlobPayload(decoded.v->bytes()).data());
  std::vector<std::byte> payload(layout.payload_bytes);
  EncodeJob encode{&layout, values, stride, payload.data()};
  ASSERT_TRUE(backend_.Encode(KvDtype::kBf16, std::span(&encode, 1)).ok());
  const std::vector<uint16_t> original(values, values + direct.size());
  EXPECT_NE(context_->layout->rotated_part(0, Part::kV), nullptr);
  EXPECT_NEAR(RelativeError(AsBytes(direct), original), encode.relative_error, 5e-3);
}

TEST_F(ArchivedFormTest, ArchivedIsMadeOfExactDataAndKept) {
  for (const SegmentForm exact : {kE, kL}) {
    PutPlan plan = Plan(kC, 0);
    plan.exact_form = exact;
    ASSERT_TRUE(Put(std::move(plan)).ok());
    OpenSegment open = Open(1, {kA});
    ASSERT_EQ(open.missing, MissingReason::kNone);
    EXPECT_EQ(open.form, kA);
    ASSERT_NE(Held(1, kA), nullptr);
    EXPECT_LT(Held(1, kA)->bytes(), Held(1, exact)->bytes());
    const LayerRead read = Read(open, 1);
    EXPECT_EQ(read.v->size() + read.k->size(), open.Bytes(1, 1));
  }
}

TEST_F(ArchivedFormTest, ErrorsBeyondTheWantedBoundAreNotServed) {
  ASSERT_TRUE(Put(Plan(kA)).ok());
  const float error = Held(1, kA)->max_relative_error();
  EXPECT_EQ(Open(1, {kA}, error).missing, MissingReason::kNone);
  EXPECT_EQ(Open(1, {kA, kD, kC}, error / 2).missing, MissingReason::kErrorBound);
}

TEST_F(ArchivedFormTest, ABoundKeepsExactDataBesideArchivesThatExceedIt) {
  PutPlan plan = Plan(kA);
  plan.max_relative_error = 1e-6f;
  ASSERT_TRUE(Put(std::move(plan)).ok());
  EXPECT_EQ(stats_.bounded_segments, 2);
  EXPECT_TRUE(Held(1, kA) != nullptr && Held(1, kE) != nullptr);
}

TEST_F(ArchivedFormTest, ValuesFarFromTheProfileFailAPutAndFallBackInAFetch) {
  PutPlan plan = Plan(kC, 0);
  values_[{1, 1, 0}] = RandomPart(rng_, kSmall, kS);
  values_[{1, 1, 0}][77] = FloatToBf16(1e9f);
  ASSERT_TRUE(Put(plan).ok());
  EXPECT_EQ(Open(1, {kA, kE}).form, kE) << "held forms come first";
  EXPECT_EQ(Open(1, {kA, kL}).form, kL);
  EXPECT_EQ(Open(1, {kA}).missing, MissingReason::kFormNotHeld);

  const auto spoiled = values_;
  plan = Plan(kA);
  values_ = spoiled;
  const absl::Status status = Put(plan);
  EXPECT_EQ(status.code(), Code::kOutOfRange);
  EXPECT_THAT(std::string(status.message()), HasSubstr("segment 1 layer 1 K"));
}

TEST_F(ArchivedFormTest, AWholeBlobOfNonsenseIsFoundCorrupt) {
  ASSERT_TRUE(Put(Plan(kA)).ok());
  const BlobPtr& blob = Held(1, kA)->blob(0, Part::kV);
  auto bytes = std::span(const_cast<std::byte*>(blob->bytes().data()), blob->size());
  const BlobHeader header = *OpenBlob(bytes);
  for (size_t i = kBlobHeaderBytes; i < bytes.size(); ++i) bytes[i] = std::byte{0x5b};
  SealBlob(header, bytes);
  OpenSegment open = Open(1, {kD});
  EXPECT_EQ(Read(open, 0).missing, MissingReason::kCorrupt);
  EXPECT_EQ(damaged_, 1);
  EXPECT_EQ(Held(1, kA), nullptr);
}

TEST_F(ArchivedFormTest, PutsThatCannotArchiveAreRefused) {
  const auto refusal = [&](auto&& spoil) {
    PutPlan plan = Plan(kA);
    spoil(plan);
    return CheckPutPlan(plan).ToString();
  };
  EXPECT_THAT(refusal([](PutPlan& plan) { plan.compressed_form = SegmentForm::kExact; }),
              HasSubstr("INVALID_ARGUMENT: put: compressed_form is exact"));
  EXPECT_THAT(refusal([](PutPlan& plan) { plan.payload = PutPayload::kCompact; }),
              HasSubstr("INVALID_ARGUMENT: put: compressed_form is ARCHIVED, but payload_form"));
  for (const bool with_profile : {true, false}) {
    context_ = SmallContext(with_profile);
    EXPECT_THAT(refusal([](PutPlan&) {}), HasSubstr("no profile with an archive section"));
  }
}

TEST_F(ArchivedFormTest, ThePlannerKnowsWhatArchivesAreMadeOfAndGoodFor) {
  ASSERT_TRUE(Put(Plan(kA, 2)).ok());
  const auto ways = [&](int64_t index, std::vector<SegmentForm> wanted) {
    return WaysToServe(*f_.store.Get(keys_)[index], wanted);
  };
  EXPECT_THAT(ways(1, {kE, kC, kD, kA}),
              ElementsAre(FormWay{kA, kA}, FormWay{kC, kA}, FormWay{kD, kA}));
  EXPECT_THAT(ways(2, {kC, kD}),
              ElementsAre(FormWay{kC, kE}, FormWay{kC, kA}, FormWay{kD, kE}, FormWay{kD, kA}));
  EXPECT_THAT(ways(3, {kA}), IsEmpty()) << "a tail";
  const StoredSegment archived = *f_.store.Get(keys_)[1];
  EXPECT_EQ(KnownError(archived, {kD, kA}), Held(1, kA)->max_relative_error());
  EXPECT_EQ(KnownError(archived, {kC, kA}), std::nullopt);
  EXPECT_EQ(KnownError(archived, {kA, kE}), std::nullopt);
}

}  // namespace
}  // namespace fourierkv
