// Segments held, put and read in the LOSSLESS form.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <map>
#include <tuple>

#include "compute/base/bfloat16.h"
#include "compute/codec/lossless_codec.h"
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
constexpr int kTail = 5;

class LosslessFormTest : public testing::Test {
 protected:
  // A plan of 3 full segments and a tail.
  PutPlan Plan(SegmentForm exact_form, int64_t keep_exact_from = 2) {
    PutPlan plan;
    plan.context = context_;
    plan.token_ids = RandomTokens(rng_, 3 * kS + kTail);
    plan.keep_exact_from = keep_exact_from;
    plan.exact_form = exact_form;
    chain_ = MakeChain(context_, plan.token_ids);
    keys_ = f_.Keys(chain_);
    values_.clear();
    return plan;
  }
  const std::vector<uint16_t>& Values(int64_t index, int layer, Part part) {
    auto& values = values_[{index, layer, static_cast<int>(part)}];
    if (values.empty()) values = RandomPart(rng_, kSmall, index == 3 ? kTail : kS);
    return values;
  }
  void PutDense(SegmentForm exact_form, int64_t keep_exact_from = 2) {
    auto session = puts_.Begin(Plan(exact_form, keep_exact_from));
    ASSERT_TRUE(session.ok()) << session.status();
    ASSERT_TRUE(SendAll(**session, [&](int64_t i, int l, Part p) { return Values(i, l, p); }).ok());
    const auto stats = (*session)->Commit();
    ASSERT_TRUE(stats.ok()) << stats.status();
    stats_ = *stats;
  }
  // The blob that a sender of LOSSLESS payload makes.
  std::vector<std::byte> Blob(int64_t index, int layer, Part part,
                              const std::vector<uint16_t>& values) {
    std::vector<std::byte> blob(kBlobHeaderBytes + LosslessBound(values.size()));
    const auto size = LosslessEncode(values, std::span(blob).subspan(kBlobHeaderBytes));
    EXPECT_TRUE(size.ok());
    blob.resize(kBlobHeaderBytes + *size);
    BlobHeader header = ExpectedHeader(chain_[index], kL, layer, part, 0);
    header.payload_bytes = *size;
    SealBlob(header, blob);
    return blob;
  }
  static absl::Status Send(PutSession& session, int64_t index, int layer, Part part,
                           const std::vector<std::byte>& blob) {
    const auto half = std::span(blob).first(blob.size() / 2);
    const auto rest = std::span(blob).subspan(half.size());
    const auto size = static_cast<int64_t>(blob.size());
    if (auto s = session.AddChunk(index, layer, part, static_cast<int64_t>(half.size()), rest,
                                  Checksum(rest), size);
        !s.ok()) {
      return s;
    }
    return session.AddChunk(index, layer, part, 0, half, Checksum(half), size);
  }
  std::vector<OpenSegment> Open(std::vector<SegmentForm> forms) {
    std::vector<SegmentWant> wants;
    for (const BlockKey& key : keys_) wants.push_back({key, forms});
    auto open = reader_.Open(wants);
    EXPECT_TRUE(open.ok()) << open.status();
    return *std::move(open);
  }
  bool Holds(int64_t index, SegmentForm form) {
    return f_.store.Get(keys_)[index]->forms[form] != nullptr;
  }
  void ExpectBits(const BlobPtr& blob, const std::vector<uint16_t>& values) {
    const auto payload = BlobPayload(blob->bytes());
    ASSERT_EQ(payload.size(), values.size() * 2);
    EXPECT_EQ(std::memcmp(payload.data(), values.data(), payload.size()), 0);
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 rng_{seed_};
  std::shared_ptr<const NamespaceContext> context_ = SmallContext();
  StoreFixture f_;
  ReferenceBackend backend_;
  PutManager puts_{&f_.store, &backend_, 3};
  std::shared_ptr<MemoryBudget> scratch_ = MemoryBudget::Create("scratch memory", 1 << 20);
  int damaged_ = 0;
  SegmentReader reader_{
      &f_.store, &backend_, scratch_,
      [this](const BlockKey&, SegmentForm, int, Part, const absl::Status&) { ++damaged_; }};
  std::map<std::tuple<int64_t, int, int>, std::vector<uint16_t>> values_;
  std::vector<StoredSegment> chain_;
  std::vector<BlockKey> keys_;
  PutStats stats_;
};

TEST_F(LosslessFormTest, APutMaySayThatExactDataIsKeptLossless) {
  PutDense(kL);
  const bool lossless[] = {true, false, true, true};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(Holds(i, kL), lossless[i]) << i;
    EXPECT_EQ(Holds(i, kC), i == 1 || i == 2) << i;
    EXPECT_FALSE(Holds(i, kE)) << i;
  }
  EXPECT_EQ(stats_.exact_bytes, 0);
  EXPECT_EQ(stats_.lossless_bytes, f_.store.Stats().forms[kL].bytes);
  EXPECT_LT(stats_.lossless_bytes, kSmall.DenseBytes(2 * kS + kTail)) << "smaller than exact";
}

TEST_F(LosslessFormTest, ExactComesBackBitForBit) {
  PutDense(kL, 0);
  auto open = Open({kE});
  for (int layer = 0; layer < kSmall.layers; ++layer) {
    const auto read = reader_.ReadLayer(std::span(open), layer);
    ASSERT_TRUE(read.ok()) << read.status();
    for (int i = 0; i < 4; ++i) {
      ExpectBits((*read)[i].k, Values(i, layer, Part::kK));
      ExpectBits((*read)[i].v, Values(i, layer, Part::kV));
      EXPECT_EQ(*OpenBlob((*read)[i].v->bytes()),
                ExpectedHeader(chain_[i], kE, layer, Part::kV, 0));
      EXPECT_EQ((*read)[i].k->size() + (*read)[i].v->size(), open[i].Bytes(layer, 1));
    }
  }
  EXPECT_FALSE(Holds(1, kE)) << "made for the reader, not kept";
  EXPECT_EQ(f_.metrics->lossless_decoded_dense_bytes, kSmall.DenseBytes(3 * kS + kTail));
}

TEST_F(LosslessFormTest, LosslessIsServedAsHeldOrMadeOfExact) {
  for (const SegmentForm held : {kL, kE}) {
    PutDense(held, 0);
    auto open = Open({kL});
    const auto read = reader_.ReadLayer(std::span(open), 1);
    ASSERT_TRUE(read.ok()) << read.status();
    for (int i = 0; i < 4; ++i) {
      const auto header = OpenBlob((*read)[i].k->bytes());
      ASSERT_TRUE(header.ok()) << header.status();
      EXPECT_EQ(header->form, kL);
      std::vector<uint16_t> values(Values(i, 1, Part::kK).size());
      ASSERT_TRUE(LosslessDecode(BlobPayload((*read)[i].k->bytes()), values).ok());
      EXPECT_EQ(values, Values(i, 1, Part::kK));
      const int64_t bytes = (*read)[i].k->size() + (*read)[i].v->size();
      if (held == kL) {
        EXPECT_EQ(open[i].Bytes(1, 1), bytes);
      } else {
        EXPECT_GE(open[i].Bytes(1, 1), bytes) << "a bound: not made yet";
      }
    }
  }
}

TEST_F(LosslessFormTest, CompactAndDenseAreMadeOfLosslessAsOfExact) {
  PutDense(kL, 0);
  const auto held = f_.store.Get(keys_)[1];
  const BlobPtr before = held->forms[kC]->blob(1, Part::kV);
  f_.store.DropDamaged(keys_[1], held->forms[kC]);
  auto dense = Open({kD});
  const auto read = reader_.ReadLayer(std::span(dense), 1);
  ASSERT_TRUE(read.ok()) << read.status();
  ExpectBits((*read)[1].v, Values(1, 1, Part::kV));
  ExpectBits((*read)[3].v, Values(3, 1, Part::kV));
  auto compact = Open({kC});
  const BlobPtr after = f_.store.Get(keys_)[1]->forms[kC]->blob(1, Part::kV);
  EXPECT_TRUE(std::equal(before->bytes().begin(), before->bytes().end(), after->bytes().begin(),
                         after->bytes().end()));
  EXPECT_EQ(compact[3].missing, MissingReason::kFormNotHeld);
}

TEST_F(LosslessFormTest, WithoutRoomCompactIsMadeOfLosslessLayerByLayer) {
  PutDense(kL, 0);
  f_.store.DropDamaged(keys_[1], f_.store.Get(keys_)[1]->forms[kC]);
  const SegmentPin pin = f_.store.Pin(keys_);
  auto hold = f_.budget->TryReserve(f_.budget->limit() - f_.budget->used() - 1000);
  auto open = Open({kC});
  EXPECT_TRUE(open[1].error_unknown);
  const auto read = reader_.ReadLayer(std::span(open), 0);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_GT(OpenBlob((*read)[1].k->bytes())->relative_error, 0);
}

TEST_F(LosslessFormTest, DamagedLosslessBlobsAreDroppedAndNeverServed) {
  PutDense(kL, 0);
  for (const std::vector<SegmentForm>& wanted :
       {std::vector{kE}, std::vector{kL}, std::vector{kC}, std::vector{kD}}) {
    SCOPED_TRACE(FormName(wanted[0]));
    PutDense(kL, 0);
    damaged_ = 0;
    if (const FormPtr compact = f_.store.Get(keys_)[1]->forms[kC]; compact != nullptr) {
      f_.store.DropDamaged(keys_[1], compact);
    }
    const BlobPtr blob = f_.store.Get(keys_)[1]->forms[kL]->blob(1, Part::kK);
    Damage(blob, rng_() % static_cast<size_t>(blob->size()));
    auto open = Open(wanted);
    if (wanted[0] != kC) {  // which is made at once
      const auto read = reader_.ReadLayer(std::span(open), 1);
      ASSERT_TRUE(read.ok()) << read.status();
      EXPECT_EQ((*read)[1].missing, MissingReason::kCorrupt);
      EXPECT_EQ((*read)[1].k, nullptr);
      EXPECT_EQ((*read)[2].missing, MissingReason::kNone);
    }
    EXPECT_EQ(open[1].missing, MissingReason::kCorrupt);
    EXPECT_EQ(damaged_, 1);
    EXPECT_FALSE(Holds(1, kL));
    EXPECT_EQ(Open(wanted)[1].missing, MissingReason::kNotStored);
  }
}

TEST_F(LosslessFormTest, AWholeBlobOfNonsenseIsDroppedToo) {
  // Checksums only tell that these are the bytes that somebody sealed.
  for (const SegmentForm wanted : {kE, kC}) {
    PutDense(kL, 0);
    const auto held = f_.store.Get(keys_)[1];
    f_.store.DropDamaged(keys_[1], held->forms[kC]);
    auto& blob = const_cast<BlobBuffer&>(*held->forms[kL]->blob(0, Part::kV));
    const BlobHeader header = *OpenBlob(blob.bytes());
    blob.bytes()[kBlobHeaderBytes] ^= std::byte{1};  // the high plane's size
    SealBlob(header, blob.bytes());
    auto open = Open({wanted});
    const auto read = reader_.ReadLayer(std::span(open), 0);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ((*read)[1].missing, MissingReason::kCorrupt);
    EXPECT_EQ((*read)[2].missing, MissingReason::kNone);
    EXPECT_NE((*read)[2].v, nullptr);
    EXPECT_FALSE(Holds(1, kL));
  }
}

TEST_F(LosslessFormTest, LosslessPayloadIsStoredAsTheDenseOneWouldBe) {
  for (const SegmentForm kept : {kE, kL}) {
    PutPlan plan = Plan(kept);
    plan.payload = PutPayload::kLossless;
    auto session = puts_.Begin(plan);
    ASSERT_TRUE(session.ok()) << session.status();
    for (int i = 0; i < 4; ++i) {
      for (int layer = 0; layer < kSmall.layers; ++layer) {
        for (const Part part : kParts) {
          const auto blob = Blob(i, layer, part, Values(i, layer, part));
          ASSERT_LE(blob.size(), (*session)->PartBytes((*session)->segments()[i], layer, part));
          const auto sent = Send(**session, i, layer, part, blob);
          ASSERT_TRUE(sent.ok()) << sent;
        }
      }
    }
    const auto stats = (*session)->Commit();
    ASSERT_TRUE(stats.ok()) << stats.status();
    EXPECT_TRUE(Holds(1, kC) && Holds(2, kC));
    EXPECT_TRUE(Holds(0, kept) && Holds(2, kept) && Holds(3, kept));
    EXPECT_FALSE(Holds(1, kept));
    auto open = Open({kE, kC});
    const auto read = reader_.ReadLayer(std::span(open), 1);
    ASSERT_TRUE(read.ok());
    EXPECT_EQ(open[2].form, kept == kE ? kE : kC) << "held forms come first";
    auto exact = Open({kE});
    const auto bits = reader_.ReadLayer(std::span(exact), 1);
    ASSERT_TRUE(bits.ok());
    for (const int i : {0, 2, 3}) ExpectBits((*bits)[i].k, Values(i, 1, Part::kK));
  }
}

TEST_F(LosslessFormTest, LosslessPayloadThatCannotBeIsRefused) {
  const auto refusal = [&](auto&& tamper) {
    PutPlan plan = Plan(kL);
    plan.payload = PutPayload::kLossless;
    auto session = puts_.Begin(plan);
    EXPECT_TRUE(session.ok()) << session.status();
    const int64_t index = rng_() % 4;
    auto values = Values(index, 1, Part::kV);
    auto blob = Blob(index, 1, Part::kV, values);
    tamper(index, values, blob);
    absl::Status status = Send(**session, index, 1, Part::kV, blob);
    if (status.ok()) status = (*session)->Commit().status();
    EXPECT_FALSE(status.ok());
    return status;
  };
  using Values = std::vector<uint16_t>;
  using Bytes = std::vector<std::byte>;
  EXPECT_EQ(refusal([&](int64_t, Values&, Bytes& blob) {
              blob[rng_() % blob.size()] ^= std::byte{4};
            }).code(),
            Code::kDataLoss);
  EXPECT_EQ(refusal([&](int64_t index, Values& values, Bytes& blob) {
              values.pop_back();
              blob = Blob(index, 1, Part::kV, values);
            }).code(),
            Code::kDataLoss)
      << "too few values";
  EXPECT_THAT(refusal([&](int64_t index, Values& values, Bytes& blob) {
                values[rng_() % values.size()] =
                    FloatToBf16(std::numeric_limits<float>::quiet_NaN());
                blob = Blob(index, 1, Part::kV, values);
              }).ToString(),
              HasSubstr("INVALID_ARGUMENT"));
  EXPECT_THAT(refusal([&](int64_t index, Values& values, Bytes& blob) {
                blob = Blob(index, 0, Part::kV, values);
              }).ToString(),
              HasSubstr("layer is 0; it must be 1"));
}

TEST_F(LosslessFormTest, TheSizeOfALosslessPartMustBeToldAndMustBePossible) {
  PutPlan plan = Plan(kL);
  plan.payload = PutPayload::kLossless;
  auto session = puts_.Begin(plan);
  ASSERT_TRUE(session.ok());
  const std::vector<std::byte> some(50);
  const int64_t most = (*session)->PartBytes((*session)->segments()[0], 0, Part::kK);
  EXPECT_EQ(most, kSmall.PartBytes(kS) + kBlobHeaderBytes + kLosslessOverheadBytes);
  for (const int64_t size : {int64_t{0}, int64_t{-1}, int64_t{103}, most + 1, INT64_MAX}) {
    const auto s = (*session)->AddChunk(0, 0, Part::kK, 0, some, Checksum(some), size);
    EXPECT_EQ(s.code(), Code::kInvalidArgument) << size;
    EXPECT_THAT(std::string(s.message()), HasSubstr("part_bytes"));
  }
  EXPECT_TRUE((*session)->AddChunk(0, 0, Part::kK, 0, some, Checksum(some), most).ok());
  EXPECT_EQ((*session)->AddChunk(0, 0, Part::kK, 50, some, Checksum(some), most - 1).code(),
            Code::kInvalidArgument)
      << "another size than before";
  EXPECT_THAT((*session)->Commit().status().ToString(), HasSubstr("50 of "));
}

TEST_F(LosslessFormTest, EitherFormOfExactDataMakesTheOtherOneSuperfluous) {
  PutDense(kL, 0);
  PutPlan plan;
  plan.context = context_;
  plan.exact_form = kE;
  std::vector<StoredSegment> again = chain_;
  for (StoredSegment& s : again) s.forms[kE] = MakeForm(s, kE, *f_.budget);
  EXPECT_EQ(f_.store.Commit(again)->forms_added, 0);
  EXPECT_EQ(*f_.store.AddForm(keys_[0], MakeForm(chain_[0], kE, *f_.budget)), false);
  EXPECT_EQ(f_.store.Stats().forms[kE].count, 0);
}

TEST_F(LosslessFormTest, LosslessFormsAreEvictedAsExactOnesAre) {
  PutDense(kL, 0);
  f_.store.Evict(1);
  EXPECT_FALSE(Holds(1, kL)) << "compact, and a full successor";
  EXPECT_TRUE(Holds(1, kC) && Holds(0, kL) && Holds(2, kL));
  EXPECT_EQ(f_.metrics->evicted_exact_forms, 1);
}

}  // namespace
}  // namespace fourierkv
