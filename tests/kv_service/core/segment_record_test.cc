#include "kv_service/core/segment_record.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <utility>

#include "core_fixtures.h"
#include "kv_service/core/namespace_directory.h"

namespace fourierkv {
namespace {

constexpr SegmentForm kForms[] = {SegmentForm::kExact, SegmentForm::kCompact};

std::string Concatenate(const RecordWriter& writer, int64_t chunk_bytes) {
  std::string record;
  for (const auto& chunk : writer.Chunks(chunk_bytes)) {
    size_t bytes = 0;
    for (const auto piece : chunk) {
      record.append(reinterpret_cast<const char*>(piece.data()), piece.size());
      bytes += piece.size();
    }
    EXPECT_LE(bytes, chunk_bytes);
    EXPECT_GT(bytes, 0);
  }
  return record;
}

absl::StatusOr<FormPtr> Read(absl::string_view record, const StoredSegment& segment,
                             SegmentForm form, MemoryBudget& budget, size_t piece_bytes) {
  RecordReader reader(segment, form, budget);
  for (size_t at = 0; at < record.size(); at += piece_bytes) {
    const absl::string_view piece = record.substr(at, piece_bytes);
    if (auto s = reader.Add(std::as_bytes(std::span(piece.data(), piece.size()))); !s.ok()) {
      return s;
    }
  }
  return reader.Finish();
}

class SegmentRecordTest : public testing::Test {
 protected:
  SegmentRecordTest() : seed_(std::random_device()()), rng_(seed_) {
    chain_ = MakeChain(context_, RandomTokens(rng_, 2 * kS + 5));
    for (StoredSegment& segment : chain_) {
      for (const SegmentForm form : kForms) {
        if (form == SegmentForm::kCompact && segment.tail) continue;
        segment.forms[form] =
            MakeForm(segment, form, *budget_, form == SegmentForm::kCompact ? 0.25f : 0);
      }
    }
  }

  std::shared_ptr<const NamespaceContext> Resolve(absl::string_view encoded) {
    return EncodeNamespace(context_->ns) == encoded ? context_ : nullptr;
  }
  absl::StatusOr<TierSegment> Decode(absl::string_view bytes) {
    return DecodeDescription(
        bytes,
        [&](absl::string_view ns) -> absl::StatusOr<std::shared_ptr<const NamespaceContext>> {
          auto context = Resolve(ns);
          if (context == nullptr) return absl::NotFoundError("another namespace");
          return context;
        });
  }
  TierSegment Describe(const StoredSegment& segment) {
    TierSegment described{.segment = segment};
    described.segment.forms = {};
    for (const SegmentForm form : kForms) {
      if (const FormPtr& held = segment.forms[form]; held != nullptr) {
        described.forms[form] = {.bytes = held->bytes(),
                                 .mean_relative_error = held->mean_relative_error(),
                                 .max_relative_error = held->max_relative_error()};
      }
    }
    return described;
  }

  const unsigned seed_;
  std::mt19937 rng_;
  std::shared_ptr<const NamespaceContext> context_ = SmallContext(true, "salt");
  std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create("test", int64_t{64} << 20);
  std::vector<StoredSegment> chain_;
};

TEST_F(SegmentRecordTest, GivesBackEveryByteHoweverItIsCut) {
  SCOPED_TRACE(seed_);
  for (const StoredSegment& segment : chain_) {
    for (const SegmentForm form : kForms) {
      const FormPtr& held = segment.forms[form];
      if (held == nullptr) continue;
      const RecordWriter writer(segment, form);
      const std::string record = Concatenate(writer, 1 + rng_() % 9000);
      EXPECT_EQ(record, Concatenate(writer, int64_t{1} << 40));
      EXPECT_EQ(record.size(), writer.bytes());
      EXPECT_EQ(record.size(), RecordBytes(segment, held->bytes()));
      const auto again = Read(record, segment, form, *budget_, 1 + rng_() % 9000);
      ASSERT_TRUE(again.ok()) << again.status();
      EXPECT_EQ((*again)->form(), form);
      EXPECT_EQ((*again)->max_relative_error(), held->max_relative_error());
      for (int layer = 0; layer < kSmall.layers; ++layer) {
        for (const Part part : kParts) {
          const auto a = std::as_const(*held->blob(layer, part)).bytes();
          const auto b = std::as_const(*(*again)->blob(layer, part)).bytes();
          ASSERT_EQ(a.size(), b.size());
          EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size()), 0);
        }
      }
    }
  }
}

TEST_F(SegmentRecordTest, RefusesEveryFlippedByteAndEveryTruncation) {
  SCOPED_TRACE(seed_);
  const StoredSegment& segment = chain_[1];
  const RecordWriter writer(segment, SegmentForm::kCompact);
  const std::string record = Concatenate(writer, 4096);
  for (size_t at = 0; at < record.size(); ++at) {
    std::string damaged = record;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << rng_() % 8));
    const auto read = Read(damaged, segment, SegmentForm::kCompact, *budget_, 5000);
    ASSERT_EQ(read.status().code(), absl::StatusCode::kDataLoss) << "byte " << at;
    const auto cut = Read(absl::string_view(record).substr(0, at), segment, SegmentForm::kCompact,
                          *budget_, 5000);
    ASSERT_EQ(cut.status().code(), absl::StatusCode::kDataLoss) << "cut at " << at;
  }
  EXPECT_EQ(Read(record + "x", segment, SegmentForm::kCompact, *budget_, 5000).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST_F(SegmentRecordTest, RefusesTheRecordOfAnythingElse) {
  const std::string record = Concatenate(RecordWriter(chain_[1], SegmentForm::kExact), 4096);
  const auto refused = [&](const StoredSegment& segment, SegmentForm form) {
    return Read(record, segment, form, *budget_, 4096).status().code() ==
           absl::StatusCode::kDataLoss;
  };
  EXPECT_TRUE(refused(chain_[0], SegmentForm::kExact));
  EXPECT_TRUE(refused(chain_[2], SegmentForm::kExact));
  EXPECT_TRUE(refused(chain_[1], SegmentForm::kCompact));
  EXPECT_TRUE(refused(chain_[1], SegmentForm::kDense));
  StoredSegment foreign = chain_[1];
  foreign.context = SmallContext(true, "another tenant");
  EXPECT_TRUE(refused(foreign, SegmentForm::kExact));
  foreign = chain_[1];
  foreign.context = SmallContext(false, "salt");
  EXPECT_TRUE(refused(foreign, SegmentForm::kCompact));
}

TEST_F(SegmentRecordTest, TakesMemoryOfTheBudgetOnlyAndGivesItBack) {
  const StoredSegment& segment = chain_[1];
  const std::string record = Concatenate(RecordWriter(segment, SegmentForm::kExact), 4096);
  const auto small = MemoryBudget::Create("small", segment.forms[SegmentForm::kExact]->bytes());
  EXPECT_EQ(Read(record, segment, SegmentForm::kExact, *small, 4096).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(small->used(), 0);
}

TEST_F(SegmentRecordTest, DescriptionsComeBack) {
  for (StoredSegment& segment : chain_) {
    segment.error_bound = 0.125f;
    const TierSegment described = Describe(segment);
    const auto again = Decode(EncodeDescription(described));
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->segment.key, segment.key);
    EXPECT_EQ(again->segment.parent, segment.parent);
    EXPECT_EQ(again->segment.context, segment.context);
    EXPECT_EQ(again->segment.index, segment.index);
    EXPECT_EQ(again->segment.tokens, segment.tokens);
    EXPECT_EQ(again->segment.tail, segment.tail);
    EXPECT_EQ(again->segment.error_bound, 0.125f);
    for (const SegmentForm form : kHeldForms) {
      EXPECT_EQ(again->forms[form].bytes, described.forms[form].bytes);
      EXPECT_EQ(again->forms[form].max_relative_error, described.forms[form].max_relative_error);
    }
  }
}

TEST_F(SegmentRecordTest, DescriptionsThatAreDamagedAreRefused) {
  SCOPED_TRACE(seed_);
  for (const absl::Time expires : {absl::InfiniteFuture(), absl::FromUnixSeconds(1'000'000)}) {
    chain_[1].expires = expires;
    const std::string bytes = EncodeDescription(Describe(chain_[1]));
    for (size_t at = 0; at < bytes.size(); ++at) {
      std::string damaged = bytes;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << rng_() % 8));
      ASSERT_EQ(Decode(damaged).status().code(), absl::StatusCode::kDataLoss) << "byte " << at;
      ASSERT_EQ(Decode(absl::string_view(bytes).substr(0, at)).status().code(),
                absl::StatusCode::kDataLoss);
    }
    EXPECT_EQ(Decode(bytes + "x").status().code(), absl::StatusCode::kDataLoss);
  }
}

TEST_F(SegmentRecordTest, DescriptionsSayUntilWhen) {
  const absl::Time soon = absl::FromUnixMillis(1'234'567'890'123);
  for (const absl::Time expires : {absl::InfiniteFuture(), soon, absl::UnixEpoch()}) {
    chain_[1].expires = expires;
    const auto again = Decode(EncodeDescription(Describe(chain_[1])));
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->segment.expires, expires);
  }
  // To the millisecond, and within what a clock of nanoseconds can hold.
  chain_[1].expires = soon + absl::Microseconds(900);
  EXPECT_EQ(Decode(EncodeDescription(Describe(chain_[1])))->segment.expires, soon);
  chain_[1].expires = absl::FromUnixSeconds(int64_t{1} << 40);
  EXPECT_LT(Decode(EncodeDescription(Describe(chain_[1])))->segment.expires,
            absl::FromUnixNanos(std::numeric_limits<int64_t>::max()));
}

TEST_F(SegmentRecordTest, DescriptionsOfWhatCannotBeAreRefusedWhateverTheirChecksum) {
  const auto refused = [&](auto change) {
    TierSegment described = Describe(chain_[1]);
    change(described);
    return Decode(EncodeDescription(described)).status().code() == absl::StatusCode::kDataLoss;
  };
  EXPECT_FALSE(refused([](TierSegment&) {}));
  EXPECT_TRUE(refused([](TierSegment& s) { s.segment.index = 0; }));
  EXPECT_TRUE(refused([&](TierSegment& s) { s.segment.parent = context_->root; }));
  EXPECT_TRUE(refused([](TierSegment& s) { s.segment.index = -1; }));
  EXPECT_TRUE(refused([](TierSegment& s) { s.segment.tokens = kS + 1; }));
  EXPECT_TRUE(refused([](TierSegment& s) { s.segment.tokens = 0; }));
  EXPECT_TRUE(refused([](TierSegment& s) { s.segment.tail = true; }));
  EXPECT_TRUE(refused([](TierSegment& s) { s.segment.tokens = kS - 1; }));
  EXPECT_TRUE(refused([](TierSegment& s) { s.segment.capacity = 7; }));
  EXPECT_TRUE(refused([](TierSegment& s) { s.segment.error_bound = -1; }));
  EXPECT_TRUE(refused([](TierSegment& s) { s.segment.error_bound = NAN; }));
  EXPECT_TRUE(refused([](TierSegment& s) { s.forms[SegmentForm::kExact].bytes = -1; }));
  EXPECT_TRUE(
      refused([](TierSegment& s) { s.forms[SegmentForm::kCompact].max_relative_error = NAN; }));
  EXPECT_TRUE(refused([](TierSegment& s) { s.forms[SegmentForm::kArchived].bytes = 100; }));
}

TEST_F(SegmentRecordTest, ANamespaceThatIsNotKnownIsToldFromDamage) {
  context_ = SmallContext(true, "somebody else");
  EXPECT_EQ(Decode(EncodeDescription(Describe(chain_[1]))).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(NamespaceDirectoryTest, MakesEachContextOnceAndNeedsItsProfile) {
  ProfileStore profiles;
  NamespaceDirectory directory(&profiles);
  const auto context = SmallContext(true, std::string("\0salt", 5));
  const std::string encoded = EncodeNamespace(context->ns);
  EXPECT_EQ(directory.Resolve(encoded).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(profiles.Put(context->layout->profile()).ok());
  const auto first = directory.Resolve(encoded);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ((*first)->ns, context->ns);
  EXPECT_EQ((*first)->root, context->root);
  EXPECT_EQ(*directory.Resolve(encoded), *first);
  for (size_t at = 0; at < encoded.size(); ++at) {
    EXPECT_FALSE(directory.Resolve(absl::string_view(encoded).substr(0, at)).ok());
  }
  EXPECT_EQ(directory.Resolve(encoded + "x").status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace fourierkv
