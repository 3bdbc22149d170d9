#include "kv_service/core/segment_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "compute/base/bfloat16.h"
#include "core_fixtures.h"
#include "kv_service/core/blob_identity.h"

namespace fourierkv {
namespace {

using ::testing::HasSubstr;
using Code = absl::StatusCode;

constexpr SegmentForm kE = SegmentForm::kExact;
constexpr SegmentForm kC = SegmentForm::kCompact;
constexpr SegmentForm kD = SegmentForm::kDense;

class SegmentReaderTest : public testing::Test {
 protected:
  // Puts a sequence of 3 full segments and a tail of 5 tokens; keys_ are theirs.
  void Put(int64_t keep_exact_from) {
    const auto tokens = RandomTokens(rng_, 3 * kS + 5);
    const auto source = [&](int64_t index, int layer, Part part) {
      auto& values = values_[{index, layer, static_cast<int>(part)}];
      values = RandomPart(rng_, kSmall, index == 3 ? 5 : kS);
      return values;
    };
    const auto stats = PutAll(puts_, context_, tokens, source, keep_exact_from);
    ASSERT_TRUE(stats.ok()) << stats.status();
    chain_ = MakeChain(context_, tokens);
    keys_ = f_.Keys(chain_);
  }
  std::vector<OpenSegment> Open(std::vector<SegmentForm> forms) {
    std::vector<SegmentWant> wants;
    for (const BlockKey& key : keys_) wants.push_back({key, forms});
    auto open = reader_.Open(wants);
    EXPECT_TRUE(open.ok()) << open.status();
    return *std::move(open);
  }
  static MissingReason Missing(const OpenSegment& open) { return open.missing; }
  void ExpectValues(const BlobPtr& blob, const std::vector<uint16_t>& values, double tolerance) {
    const auto payload = BlobPayload(blob->bytes());
    ASSERT_EQ(payload.size(), values.size() * 2);
    double error = 0;
    double norm = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      uint16_t bits;
      std::memcpy(&bits, payload.data() + 2 * i, 2);
      const double x = Bf16ToFloat(values[i]);
      error += (Bf16ToFloat(bits) - x) * (Bf16ToFloat(bits) - x);
      norm += x * x;
    }
    EXPECT_LE(std::sqrt(error / norm), tolerance);
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 rng_{seed_};
  std::shared_ptr<const NamespaceContext> context_ = SmallContext();
  StoreFixture f_;
  ReferenceBackend backend_;
  PutManager puts_{&f_.store, &backend_, 3};
  std::shared_ptr<MemoryBudget> scratch_ = MemoryBudget::Create("scratch memory", 1 << 20);
  std::vector<std::string> log_;
  SegmentReader reader_{
      &f_.store, &backend_, scratch_,
      [this](const BlockKey&, SegmentForm form, int layer, Part part, const absl::Status& status) {
        log_.push_back(
            absl::StrCat(FormName(form), " ", layer, " ", PartName(part), " ", status.message()));
      }};
  std::map<std::tuple<int64_t, int, int>, std::vector<uint16_t>> values_;
  std::vector<StoredSegment> chain_;
  std::vector<BlockKey> keys_;
};

TEST_F(SegmentReaderTest, GivesTheFirstWantedFormThatIsHeld) {
  Put(2);
  const auto compact_first = Open({kC, kE});
  EXPECT_EQ(compact_first[0].form, kE);
  EXPECT_EQ(compact_first[1].form, kC);
  EXPECT_EQ(compact_first[2].form, kC);
  EXPECT_EQ(compact_first[3].form, kE);
  const auto exact_first = Open({kE, kC});
  EXPECT_EQ(exact_first[1].form, kC);
  EXPECT_EQ(exact_first[2].form, kE);
  EXPECT_EQ(f_.metrics->read_hits, 8);
}

TEST_F(SegmentReaderTest, ExactBytesComeBackBitForBit) {
  Put(0);
  auto open = Open({kE});
  int64_t bytes = 0;
  for (int layer = 0; layer < kSmall.layers; ++layer) {
    const auto read = reader_.ReadLayer(std::span(open), layer);
    ASSERT_TRUE(read.ok()) << read.status();
    for (int i = 0; i < 4; ++i) {
      ExpectValues((*read)[i].k, values_[{i, layer, 0}], 0);
      ExpectValues((*read)[i].v, values_[{i, layer, 1}], 0);
      bytes += (*read)[i].k->size() + (*read)[i].v->size();
    }
  }
  int64_t announced = 0;
  for (const OpenSegment& segment : open) announced += segment.Bytes(0, kSmall.layers);
  EXPECT_EQ(announced, bytes);
  EXPECT_EQ(f_.metrics->bytes_out, bytes);
  EXPECT_EQ(open[2].Bytes(1, 1), open[2].Bytes(0, 2) / 2);
}

TEST_F(SegmentReaderTest, DenseIsDecodedFromCompactAndSaysItsError) {
  Put(100);
  auto open = Open({kD});
  const auto read = reader_.ReadLayer(std::span(open), 1);
  ASSERT_TRUE(read.ok()) << read.status();
  for (int i = 1; i < 3; ++i) {
    const auto header = OpenBlob((*read)[i].v->bytes());
    ASSERT_TRUE(header.ok());
    EXPECT_EQ(*header, ExpectedHeader(chain_[i], kD, 1, Part::kV, header->relative_error));
    EXPECT_GT(header->relative_error, 0);
    ExpectValues((*read)[i].v, values_[{i, 1, 1}], header->relative_error * 1.01 + 0.004);
    EXPECT_EQ((*read)[i].v->size(), open[i].Bytes(1, 1) / 2);
  }
  // Held exact only: a copy, without error.
  for (int i : {0, 3}) {
    const auto header = OpenBlob((*read)[i].k->bytes());
    EXPECT_EQ(header->form, kD);
    EXPECT_EQ(header->relative_error, 0);
    ExpectValues((*read)[i].k, values_[{i, 1, 0}], 0);
  }
  EXPECT_GT(scratch_->used(), 0);
  EXPECT_EQ(f_.store.Get(keys_)[1]->forms[SegmentForm::kExact], nullptr)
      << "decoded bytes are not kept";
}

TEST_F(SegmentReaderTest, ScratchIsBoundedAndGivenBack) {
  Put(100);
  auto open = Open({kD});
  auto hold = scratch_->TryReserve(scratch_->limit() - 100);
  EXPECT_EQ(reader_.ReadLayer(std::span(open), 0).status().code(), Code::kResourceExhausted);
  hold->Release();
  EXPECT_TRUE(reader_.ReadLayer(std::span(open), 0).ok());
  EXPECT_EQ(scratch_->used(), 0);
}

TEST_F(SegmentReaderTest, CompactIsMadeOnDemandAndKept) {
  Put(0);
  f_.store.DropDamaged(keys_[1], f_.store.Get(keys_)[1]->forms[SegmentForm::kCompact]);
  const int jobs = backend_.encode_jobs;
  auto open = Open({kC});
  EXPECT_EQ(open[1].form, kC);
  EXPECT_EQ(backend_.encode_jobs, jobs + 8) << "segments 0 and 1, 2 layers, K and V";
  EXPECT_EQ(Missing(open[3]), MissingReason::kFormNotHeld) << "a tail has no compact form";
  const auto read = reader_.ReadLayer(std::span(open), 0);
  ASSERT_TRUE(read.ok());
  const auto header = OpenBlob((*read)[1].k->bytes());
  EXPECT_EQ(*header, ExpectedHeader(chain_[1], kC, 0, Part::kK, header->relative_error));
  EXPECT_EQ((*read)[3].missing, MissingReason::kFormNotHeld);
  EXPECT_EQ((*read)[3].k, nullptr);
  EXPECT_EQ(f_.metrics->compacted_on_demand, 2);
  EXPECT_NE(f_.store.Get(keys_)[1]->forms[SegmentForm::kCompact], nullptr);
  Open({kC});
  EXPECT_EQ(f_.metrics->compacted_on_demand, 2);
  // The sink stays exact whatever else is held of it.
  f_.store.Evict(1);
  EXPECT_GT(f_.store.Describe(keys_[0])->forms[SegmentForm::kExact].bytes, 0);
}

TEST_F(SegmentReaderTest, WithoutRoomCompactIsMadeLayerByLayerAndNotKept) {
  Put(0);
  f_.store.DropDamaged(keys_[1], f_.store.Get(keys_)[1]->forms[SegmentForm::kCompact]);
  const SegmentPin pin = f_.store.Pin(keys_);
  const auto full = f_.budget->TryReserve(f_.budget->limit() - f_.budget->used());
  ASSERT_TRUE(full.ok());
  auto open = Open({kC});
  ASSERT_EQ(Missing(open[1]), MissingReason::kNone);
  for (int layer = 0; layer < kSmall.layers; ++layer) {
    const auto read = reader_.ReadLayer(std::span(open), layer);
    ASSERT_TRUE(read.ok()) << read.status();
    const auto header = OpenBlob((*read)[1].v->bytes());
    EXPECT_EQ(header->form, kC);
    EXPECT_GT(header->relative_error, 0);
    EXPECT_EQ((*read)[1].v->size(), open[1].Bytes(layer, 1) - (*read)[1].k->size());
  }
  EXPECT_EQ(f_.store.Get(keys_)[1]->forms[SegmentForm::kCompact], nullptr);
}

TEST_F(SegmentReaderTest, WhatIsNotThereIsMissingAndSaysWhy) {
  Put(100);
  keys_.push_back(Digest{});
  auto open = Open({kE});
  EXPECT_EQ(Missing(open[0]), MissingReason::kNone);
  EXPECT_EQ(Missing(open[1]), MissingReason::kFormNotHeld);
  EXPECT_EQ(Missing(open[4]), MissingReason::kNotStored);
  EXPECT_EQ(open[4].Bytes(0, 2), 0);
  EXPECT_EQ(open[4].segment.key, Digest{});
  EXPECT_EQ(f_.metrics->read_misses, 3);
  EXPECT_STREQ(MissingReasonName(open[4].missing), "not stored");
}

TEST_F(SegmentReaderTest, WithoutAProfileNothingIsCompact) {
  context_ = SmallContext(false);
  Put(0);
  for (const OpenSegment& open : Open({kC})) {
    EXPECT_EQ(Missing(open), MissingReason::kFormNotHeld);
  }
  auto dense = Open({kD});
  const auto read = reader_.ReadLayer(std::span(dense), 0);
  ASSERT_TRUE(read.ok());
  ExpectValues((*read)[1].k, values_[{1, 0, 0}], 0);
}

TEST_F(SegmentReaderTest, BadRequestsAreRefused) {
  Put(0);
  EXPECT_EQ(reader_.Open(std::vector{SegmentWant{keys_[0], {}}}).status().code(),
            Code::kInvalidArgument);
  auto open = Open({kE});
  EXPECT_EQ(reader_.ReadLayer(std::span(open), 2).status().code(), Code::kOutOfRange);
  EXPECT_EQ(reader_.ReadLayer(std::span(open), -1).status().code(), Code::kOutOfRange);
  // Forms that nobody knows are as good as none.
  const auto unknown = reader_.Open(std::vector{SegmentWant{keys_[0], {SegmentForm{9}}}});
  ASSERT_TRUE(unknown.ok());
  EXPECT_EQ(Missing((*unknown)[0]), MissingReason::kFormNotHeld);
}

TEST_F(SegmentReaderTest, DamagedBytesAreNeverServed) {
  Put(0);
  const FormPtr exact = f_.store.Get(keys_)[2]->forms[SegmentForm::kExact];
  auto open = Open({kE});
  // One bit anywhere: header or payload.
  Damage(exact->blob(1, Part::kV), rng_() % exact->blob(1, Part::kV)->size());
  EXPECT_EQ((*reader_.ReadLayer(std::span(open), 0))[2].missing, MissingReason::kNone);
  const auto read = reader_.ReadLayer(std::span(open), 1);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ((*read)[2].missing, MissingReason::kCorrupt);
  EXPECT_EQ((*read)[2].k, nullptr);
  EXPECT_EQ((*read)[2].v, nullptr);
  EXPECT_NE((*read)[1].v, nullptr) << "others are served";
  EXPECT_EQ(Missing(open[2]), MissingReason::kCorrupt);
  EXPECT_EQ((*reader_.ReadLayer(std::span(open), 0))[2].missing, MissingReason::kCorrupt);
  EXPECT_EQ(f_.metrics->corrupt_blobs, 1);
  ASSERT_EQ(log_.size(), 1);
  EXPECT_THAT(log_[0], HasSubstr("exact 1 V"));
  // The form is gone, the other one serves the next reader.
  const auto again = Open({kE, kC});
  EXPECT_EQ(again[2].form, kC);
  EXPECT_EQ(Missing(again[2]), MissingReason::kNone);
}

TEST_F(SegmentReaderTest, DamageIsFoundWhenAFormIsMadeFromIt) {
  Put(0);
  auto stored = f_.store.Get(keys_);
  f_.store.DropDamaged(keys_[1], stored[1]->forms[SegmentForm::kCompact]);
  Damage(stored[1]->forms[SegmentForm::kExact]->blob(0, Part::kK), 96);
  Damage(stored[2]->forms[SegmentForm::kCompact]->blob(0, Part::kK), 500);
  EXPECT_EQ(Missing(Open({kC})[1]), MissingReason::kCorrupt);
  auto dense = Open({kD});
  EXPECT_EQ(Missing(dense[1]), MissingReason::kNotStored) << "a hole is as good as nothing";
  const auto read = reader_.ReadLayer(std::span(dense), 0);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ((*read)[2].missing, MissingReason::kCorrupt);
  EXPECT_EQ(f_.metrics->corrupt_blobs, 2);
}

TEST_F(SegmentReaderTest, ABlobOfAnotherPlaceIsAsBadAsADamagedOne) {
  Put(0);
  const auto exact = f_.store.Get(keys_)[2]->forms[SegmentForm::kExact];
  const auto from = exact->blob(0, Part::kK)->bytes();
  auto& to = const_cast<BlobBuffer&>(*exact->blob(1, Part::kK));
  std::copy(from.begin(), from.end(), to.bytes().begin());
  auto open = Open({kE});
  EXPECT_EQ((*reader_.ReadLayer(std::span(open), 1))[2].missing, MissingReason::kCorrupt);
}

TEST_F(SegmentReaderTest, EnsureCompactMakesOnceOrSaysWhyNot) {
  Put(0);
  EXPECT_EQ(reader_.EnsureCompact(Digest{}).status().code(), Code::kNotFound);
  EXPECT_EQ(reader_.EnsureCompact(keys_[3]).status().code(), Code::kFailedPrecondition);
  const auto made = reader_.EnsureCompact(keys_[0]);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(*reader_.EnsureCompact(keys_[0]), *made);
  Damage(f_.store.Get(keys_)[1]->forms[SegmentForm::kExact]->blob(0, Part::kV), 1000);
  f_.store.DropDamaged(keys_[1], f_.store.Get(keys_)[1]->forms[SegmentForm::kCompact]);
  EXPECT_EQ(reader_.EnsureCompact(keys_[1]).status().code(), Code::kDataLoss);
  EXPECT_EQ(reader_.EnsureCompact(keys_[1]).status().code(), Code::kFailedPrecondition);
}

TEST_F(SegmentReaderTest, EvictionDoesNotDisturbAnOpenSegment) {
  Put(100);
  auto open = Open({kC, kE});
  f_.store.Evict(int64_t{1} << 40);
  EXPECT_EQ(f_.store.Stats().segments, 0);
  EXPECT_TRUE(reader_.ReadLayer(std::span(open), 1).ok());
  EXPECT_GT(f_.budget->used(), 0);
  open.clear();
  EXPECT_EQ(f_.budget->used(), 0);
}

}  // namespace
}  // namespace fourierkv
