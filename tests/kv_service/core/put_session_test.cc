#include "kv_service/core/put_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <map>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "compute/base/bfloat16.h"
#include "core_fixtures.h"
#include "kv_service/core/blob_identity.h"
#include "kv_service/core/part_collector.h"

namespace fourierkv {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Code = absl::StatusCode;

class PutSessionTest : public testing::Test {
 protected:
  void SetUp() override { RecordProperty("seed", static_cast<int>(seed_)); }

  PutPlan Plan(std::vector<uint32_t> tokens) {
    PutPlan plan;
    plan.context = context_;
    plan.token_ids = std::move(tokens);
    return plan;
  }
  std::unique_ptr<PutSession> Begin(PutPlan plan) {
    auto session = puts_.Begin(std::move(plan));
    EXPECT_TRUE(session.ok()) << session.status();
    return session.ok() ? std::move(*session) : nullptr;
  }
  // The same values whenever the same part is asked for.
  std::vector<uint16_t> Values(int64_t index, int layer, Part part, int tokens = kS) {
    auto& values = values_[{index, layer, static_cast<int>(part)}];
    if (values.empty()) values = RandomPart(rng_, kSmall, tokens);
    return values;
  }
  PartSource Source(int64_t tail_index = -1, int tail_tokens = 0) {
    return [=, this](int64_t index, int layer, Part part) {
      return Values(index, layer, part, index == tail_index ? tail_tokens : kS);
    };
  }
  absl::Status Send(PutSession& session, int64_t index, int layer, Part part,
                    std::span<const std::byte> bytes, int64_t offset = 0) {
    return session.AddChunk(index, layer, part, offset, bytes, Checksum(bytes));
  }
  std::vector<std::optional<StoredSegment>> Stored(const std::vector<uint32_t>& tokens) {
    return f_.store.Get(f_.Keys(MakeChain(context_, tokens)));
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 rng_{seed_};
  std::shared_ptr<const NamespaceContext> context_ = SmallContext();
  StoreFixture f_;
  ReferenceBackend backend_;
  PutManager puts_{&f_.store, &backend_, 3};
  std::map<std::tuple<int64_t, int, int>, std::vector<uint16_t>> values_;
};

TEST_F(PutSessionTest, ADensePutIsStoredInTheFormsThatTheRuleSays) {
  const auto tokens = RandomTokens(rng_, 4 * kS + 9);
  PutPlan plan = Plan(tokens);
  plan.keep_exact_from = 3;
  auto session = Begin(plan);
  EXPECT_EQ(session->needed_segments(), 5);
  ASSERT_TRUE(SendAll(*session, Source(4, 9), 1000).ok());
  EXPECT_FALSE(Stored(tokens)[0].has_value()) << "visible before the commit";
  const auto stats = session->Commit();
  ASSERT_TRUE(stats.ok()) << stats.status();
  const auto stored = Stored(tokens);
  const bool exact[] = {true, false, false, true, true};
  const bool compact[] = {false, true, true, true, false};
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(stored[i].has_value());
    EXPECT_EQ(stored[i]->forms[SegmentForm::kExact] != nullptr, exact[i]) << i;
    EXPECT_EQ(stored[i]->forms[SegmentForm::kCompact] != nullptr, compact[i]) << i;
  }
  EXPECT_EQ(stats->segments_stored, 5);
  EXPECT_EQ(stats->segments_deduplicated, 0);
  EXPECT_EQ(stats->bytes_received, kSmall.DenseBytes(4 * kS + 9));
  EXPECT_EQ(stats->encoded_dense_bytes, kSmall.DenseBytes(3 * kS));
  EXPECT_EQ(stats->exact_bytes, f_.store.Stats().forms[SegmentForm::kExact].bytes);
  EXPECT_EQ(stats->compact_bytes, f_.store.Stats().forms[SegmentForm::kCompact].bytes);
  EXPECT_GT(stats->max_relative_error, 0);
  EXPECT_LT(stats->max_relative_error, 0.5);
  EXPECT_EQ(
      stored[1]->forms[SegmentForm::kCompact]->max_relative_error() <= stats->max_relative_error,
      true);
  EXPECT_EQ(backend_.encode_jobs, 3 * 4);
  EXPECT_EQ(backend_.encode_calls, 1) << "parts are encoded in batches";
}

TEST_F(PutSessionTest, BlobsHoldTheValuesUnderTheRightHeaders) {
  const auto tokens = RandomTokens(rng_, 2 * kS);
  ASSERT_TRUE(PutAll(puts_, context_, tokens, Source()).ok());
  const auto stored = Stored(tokens);
  for (int64_t i = 0; i < 2; ++i) {
    for (int layer = 0; layer < kSmall.layers; ++layer) {
      for (const Part part : kParts) {
        const auto blob = stored[i]->forms[SegmentForm::kExact]->blob(layer, part)->bytes();
        const auto header = OpenBlob(blob);
        ASSERT_TRUE(header.ok()) << header.status();
        EXPECT_EQ(*header, ExpectedHeader(*stored[i], SegmentForm::kExact, layer, part, 0));
        EXPECT_EQ(header->first_token, i * kS);
        const auto sent = Values(i, layer, part);
        EXPECT_TRUE(std::equal(BlobPayload(blob).begin(), BlobPayload(blob).end(),
                               AsBytes(sent).begin(), AsBytes(sent).end()));
      }
    }
  }
  std::vector<std::byte> payload(context_->layout->part(1, Part::kV).payload_bytes);
  const auto dense = Values(1, 1, Part::kV);
  EncodeJob job{.layout = &context_->layout->part(1, Part::kV),
                .dense = dense.data(),
                .head_stride = kS * kSmall.head_dim,
                .payload = payload.data()};
  ASSERT_TRUE(backend_.Encode(KvDtype::kBf16, std::span(&job, 1)).ok());
  const auto compact = stored[1]->forms[SegmentForm::kCompact]->blob(1, Part::kV)->bytes();
  EXPECT_EQ(OpenBlob(compact)->relative_error, job.relative_error);
  EXPECT_TRUE(std::equal(payload.begin(), payload.end(), BlobPayload(compact).begin()));
}

TEST_F(PutSessionTest, WithoutAProfileEverythingIsExact) {
  context_ = SmallContext(false);
  const auto tokens = RandomTokens(rng_, 2 * kS + 1);
  ASSERT_TRUE(PutAll(puts_, context_, tokens, Source(2, 1)).ok());
  for (const auto& segment : Stored(tokens)) {
    EXPECT_NE(segment->forms[SegmentForm::kExact], nullptr);
    EXPECT_EQ(segment->forms[SegmentForm::kCompact], nullptr);
  }
  EXPECT_EQ(backend_.encode_calls, 0);
}

TEST_F(PutSessionTest, APutOfWhatIsStoredMovesNothingAndTouches) {
  const auto tokens = RandomTokens(rng_, 3 * kS + 1);
  ASSERT_TRUE(PutAll(puts_, context_, tokens, Source(3, 1), 2).ok());
  const int64_t used = f_.budget->used();
  f_.now += absl::Seconds(9);
  PutPlan plan = Plan(tokens);
  plan.keep_exact_from = 2;
  auto session = Begin(plan);
  EXPECT_EQ(session->needed_segments(), 0);
  const auto stats = session->Commit();
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_EQ(stats->segments_deduplicated, 4);
  EXPECT_EQ(stats->bytes_received, 0);
  EXPECT_EQ(f_.budget->used(), used);
  EXPECT_EQ(f_.store.Describe(session->segments()[1].key)->last_use, f_.now);
}

TEST_F(PutSessionTest, ALongerSequenceSendsOnlyWhatIsNew) {
  auto tokens = RandomTokens(rng_, 2 * kS);
  ASSERT_TRUE(PutAll(puts_, context_, tokens, Source()).ok());
  for (uint32_t t : RandomTokens(rng_, kS)) tokens.push_back(t);
  auto session = Begin(Plan(tokens));
  EXPECT_FALSE(session->segments()[0].needed);
  EXPECT_FALSE(session->segments()[1].needed);
  EXPECT_TRUE(session->segments()[2].needed);
  const auto values = Values(1, 0, Part::kK);
  EXPECT_THAT(Send(*session, 1, 0, Part::kK, AsBytes(values)).ToString(),
              AllOf(HasSubstr("INVALID_ARGUMENT"), HasSubstr("segment 1")));
  ASSERT_TRUE(SendAll(*session, Source()).ok());
  EXPECT_EQ(session->Commit()->segments_stored, 1);
}

TEST_F(PutSessionTest, ExactBytesAreAskedForAgainOnlyWhereTheyAreToBeKept) {
  const auto tokens = RandomTokens(rng_, 4 * kS);
  ASSERT_TRUE(PutAll(puts_, context_, tokens, Source(), 100).ok());  // 1 to 3 compact only
  PutPlan plan = Plan(tokens);
  plan.keep_exact_from = 3;
  auto session = Begin(plan);
  EXPECT_FALSE(session->segments()[2].needed);
  EXPECT_TRUE(session->segments()[3].needed);
  ASSERT_TRUE(SendAll(*session, Source()).ok());
  const auto stats = session->Commit();
  EXPECT_EQ(stats->segments_stored, 0);
  EXPECT_NE(Stored(tokens)[3]->forms[SegmentForm::kExact], nullptr);
}

TEST_F(PutSessionTest, PutsContinueFromAParent) {
  const auto tokens = RandomTokens(rng_, 3 * kS + 4);
  ASSERT_TRUE(PutAll(puts_, context_, {tokens.begin(), tokens.begin() + 2 * kS}, Source()).ok());
  const auto chain = MakeChain(context_, tokens);
  PutPlan plan = Plan({tokens.begin() + 2 * kS, tokens.end()});
  plan.parent = chain[1].key;
  plan.first_segment_index = 2;
  auto session = Begin(plan);
  EXPECT_EQ(session->segments()[0].key, chain[2].key);
  EXPECT_EQ(session->segments()[1].key, chain[3].key);
  // The parent cannot go while the put runs.
  f_.store.Evict(int64_t{1} << 40);
  EXPECT_TRUE(f_.store.Describe(chain[1].key).ok());
  ASSERT_TRUE(SendAll(*session, Source(3, 4)).ok());
  ASSERT_TRUE(session->Commit().ok());
  EXPECT_EQ(f_.store.Match(f_.Keys(chain))->segments.size(), 4);
}

TEST_F(PutSessionTest, AParentThatDoesNotFitIsRefused) {
  const auto tokens = RandomTokens(rng_, 2 * kS + 1);
  ASSERT_TRUE(PutAll(puts_, context_, tokens, Source(2, 1)).ok());
  const auto chain = MakeChain(context_, tokens);
  PutPlan plan = Plan(RandomTokens(rng_, kS));
  const auto refused = [&](const BlockKey& parent, int64_t index) {
    plan.parent = parent;
    plan.first_segment_index = index;
    const auto session = puts_.Begin(plan);
    EXPECT_EQ(session.status().code(), Code::kFailedPrecondition);
    return session.status().ToString();
  };
  EXPECT_THAT(refused(Digest{}, 1), HasSubstr("not stored"));
  EXPECT_THAT(refused(chain[0].key, 2), HasSubstr("must be 1"));
  EXPECT_THAT(refused(chain[2].key, 3), HasSubstr("tail"));
  plan.context = SmallContext(true, "other tenant");
  EXPECT_THAT(refused(chain[1].key, 2), HasSubstr("not stored"));
  EXPECT_EQ(puts_.running(), 0);
  EXPECT_EQ(f_.store.Describe(chain[1].key)->holds, 0);
}

TEST_F(PutSessionTest, AnAbortedPutLeavesNothingBehind) {
  const auto tokens = RandomTokens(rng_, 3 * kS);
  ASSERT_TRUE(PutAll(puts_, context_, {tokens.begin(), tokens.begin() + kS}, Source()).ok());
  const int64_t used = f_.budget->used();
  for (int how_much = 0; how_much < 3; ++how_much) {
    auto session = Begin(Plan(tokens));
    EXPECT_EQ(puts_.running(), 1);
    const auto values = Values(1, 0, Part::kK);
    if (how_much == 1) {
      ASSERT_TRUE(Send(*session, 1, 0, Part::kK, AsBytes(values).first(10)).ok());
    }
    if (how_much == 2) {
      ASSERT_TRUE(SendAll(*session, Source()).ok());
    }
    EXPECT_EQ(f_.budget->used() > used, how_much > 0);
    session.reset();
    EXPECT_EQ(f_.budget->used(), used);
    EXPECT_EQ(f_.store.Stats().segments, 1);
    EXPECT_EQ(puts_.running(), 0);
    EXPECT_EQ(f_.store.Describe(MakeChain(context_, tokens)[0].key)->holds, 0);
  }
  EXPECT_EQ(f_.metrics->puts_aborted, 3);
}

TEST_F(PutSessionTest, BadChunksAreRefusedAndTheSessionGoesOn) {
  const auto tokens = RandomTokens(rng_, 2 * kS);
  auto session = Begin(Plan(tokens));
  const auto values = Values(1, 1, Part::kV);
  const auto bytes = AsBytes(values);
  const auto code = [&](int64_t index, int layer, int part, int64_t offset, int64_t n) {
    return Send(*session, index, layer, static_cast<Part>(part), bytes.first(n), offset).code();
  };
  const int64_t size = static_cast<int64_t>(bytes.size());
  EXPECT_EQ(code(-1, 1, 1, 0, 8), Code::kInvalidArgument);
  EXPECT_EQ(code(2, 1, 1, 0, 8), Code::kInvalidArgument);
  EXPECT_EQ(code(INT64_MAX, 1, 1, 0, 8), Code::kInvalidArgument);
  EXPECT_EQ(code(1, 2, 1, 0, 8), Code::kInvalidArgument);
  EXPECT_EQ(code(1, -1, 1, 0, 8), Code::kInvalidArgument);
  EXPECT_EQ(code(1, 1, 2, 0, 8), Code::kInvalidArgument);
  EXPECT_EQ(code(1, 1, 1, 0, 0), Code::kInvalidArgument);
  EXPECT_EQ(code(1, 1, 1, -1, 8), Code::kOutOfRange);
  EXPECT_EQ(code(1, 1, 1, size - 7, 8), Code::kOutOfRange);
  EXPECT_EQ(code(1, 1, 1, size + 1, 8), Code::kOutOfRange);
  EXPECT_EQ(code(1, 1, 1, INT64_MAX, 8), Code::kOutOfRange);
  EXPECT_EQ(f_.budget->used(), 0) << "refused chunks hold memory";
  const absl::Status damaged =
      session->AddChunk(1, 1, Part::kV, 16, bytes.first(8), Checksum(bytes.first(9)));
  EXPECT_EQ(damaged.code(), Code::kDataLoss);
  EXPECT_THAT(damaged.ToString(), HasSubstr("segment 1 layer 1 V offset 16"));
  EXPECT_EQ(f_.metrics->chunk_checksum_errors, 1);
  ASSERT_TRUE(Send(*session, 1, 1, Part::kV, bytes.first(100)).ok());
  EXPECT_EQ(code(1, 1, 1, 99, 8), Code::kAlreadyExists);
  ASSERT_TRUE(Send(*session, 1, 1, Part::kV, bytes.subspan(100), 100).ok());
  EXPECT_EQ(code(1, 1, 1, 0, 8), Code::kAlreadyExists);
  for (const auto& [index, layer, part] : {std::tuple{0, 0, Part::kK},
                                           {0, 0, Part::kV},
                                           {0, 1, Part::kK},
                                           {0, 1, Part::kV},
                                           {1, 0, Part::kK},
                                           {1, 0, Part::kV}}) {
    const auto more = Values(index, layer, part);
    ASSERT_TRUE(Send(*session, index, layer, part, AsBytes(more)).ok());
  }
  const auto early = session->Commit();
  EXPECT_EQ(early.status().code(), Code::kFailedPrecondition);
  EXPECT_THAT(early.status().ToString(), HasSubstr("segment 1 layer 1 K"));
  const auto last = Values(1, 1, Part::kK);
  ASSERT_TRUE(Send(*session, 1, 1, Part::kK, AsBytes(last)).ok());
  ASSERT_TRUE(session->Commit().ok());
  EXPECT_EQ(session->Commit().status().code(), Code::kFailedPrecondition);
  EXPECT_EQ(Send(*session, 1, 1, Part::kK, AsBytes(last)).code(), Code::kFailedPrecondition);
}

TEST_F(PutSessionTest, ValuesThatAreNotFiniteEndThePut) {
  const float bads[] = {std::numeric_limits<float>::quiet_NaN(),
                        -std::numeric_limits<float>::infinity(), 2e30f};
  for (const int64_t bad_segment : {0, 1}) {  // exact only, and encoded
    for (const float bad : bads) {
      auto session = Begin(Plan(RandomTokens(rng_, 2 * kS)));
      const auto source = [&](int64_t index, int layer, Part part) {
        auto values = Values(index, layer, part);
        if (index == bad_segment && layer == 1 && part == Part::kV) {
          // Head 1, token 3, channel 5.
          values[(kS + 3) * kSmall.head_dim + 5] = FloatToBf16(bad);
        }
        return values;
      };
      absl::Status status = SendAll(*session, source);
      if (status.ok()) status = session->Commit().status();
      EXPECT_EQ(status.code(), Code::kInvalidArgument) << bad;
      EXPECT_THAT(status.ToString(),
                  HasSubstr(absl::StrCat("segment ", bad_segment, " layer 1 V")));
      if (bad_segment == 0) {
        EXPECT_THAT(status.ToString(), HasSubstr("head 1 token 3 channel 5"));
      }
      EXPECT_EQ(session->Commit().status(), status);
      EXPECT_EQ(f_.budget->used(), 0);
    }
  }
}

TEST_F(PutSessionTest, ValuesThatAreNotFiniteAreAtFaultWhateverElseIsMissing) {
  for (const int64_t bad_segment : {0, 1}) {
    auto session = Begin(Plan(RandomTokens(rng_, 2 * kS)));
    auto values = Values(bad_segment, 1, Part::kV);
    values[rng_() % values.size()] = FloatToBf16(std::numeric_limits<float>::quiet_NaN());
    absl::Status status = Send(*session, bad_segment, 1, Part::kV, AsBytes(values));
    if (status.ok()) status = session->Commit().status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << status;
  }
}

TEST_F(PutSessionTest, CompactBlobsOfAnotherStoreAreTakenAsTheyAre) {
  const auto tokens = RandomTokens(rng_, 3 * kS);
  ASSERT_TRUE(PutAll(puts_, context_, tokens, Source()).ok());
  const auto stored = Stored(tokens);
  StoreFixture other;
  PutManager puts(&other.store, &backend_, 1);
  ASSERT_TRUE(PutAll(puts, context_, {tokens.begin(), tokens.begin() + kS}, Source()).ok());
  PutPlan plan = Plan({tokens.begin() + kS, tokens.end()});
  plan.parent = stored[0]->key;
  plan.first_segment_index = 1;
  plan.payload = PutPayload::kCompact;
  const int jobs = backend_.encode_jobs;
  auto session = puts.Begin(plan);
  ASSERT_TRUE(session.ok()) << session.status();
  for (const PlannedSegment& segment : (*session)->segments()) {
    for (int layer = 0; layer < kSmall.layers; ++layer) {
      for (const Part part : kParts) {
        const auto blob =
            stored[segment.index]->forms[SegmentForm::kCompact]->blob(layer, part)->bytes();
        EXPECT_EQ((*session)->PartBytes(segment, layer, part), blob.size());
        ASSERT_TRUE(Send(**session, segment.index, layer, part, blob.subspan(50), 50).ok());
        ASSERT_TRUE(Send(**session, segment.index, layer, part, blob.first(50)).ok());
      }
    }
  }
  const auto stats = (*session)->Commit();
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_EQ(backend_.encode_jobs, jobs);
  EXPECT_EQ(stats->max_relative_error,
            std::max(stored[1]->forms[SegmentForm::kCompact]->max_relative_error(),
                     stored[2]->forms[SegmentForm::kCompact]->max_relative_error()));
  EXPECT_EQ(other.store.Get(std::vector{stored[2]->key})[0]->forms[SegmentForm::kExact], nullptr);
}

TEST_F(PutSessionTest, CompactBlobsThatAreDamagedOrForeignEndThePut) {
  const auto tokens = RandomTokens(rng_, 3 * kS);
  ASSERT_TRUE(PutAll(puts_, context_, tokens, Source()).ok());
  const auto stored = Stored(tokens);
  StoreFixture other;
  PutManager puts(&other.store, &backend_, 1);
  ASSERT_TRUE(PutAll(puts, context_, {tokens.begin(), tokens.begin() + kS}, Source()).ok());
  PutPlan plan = Plan({tokens.begin() + kS, tokens.end()});
  plan.parent = stored[0]->key;
  plan.first_segment_index = 1;
  plan.payload = PutPayload::kCompact;
  const int64_t used = other.budget->used();
  const auto refused = [&](std::function<void(std::vector<std::byte>&)> spoil) {
    const auto blob = stored[1]->forms[SegmentForm::kCompact]->blob(0, Part::kK)->bytes();
    std::vector<std::byte> bytes(blob.begin(), blob.end());
    spoil(bytes);
    auto session = puts.Begin(plan);
    const absl::Status status = Send(**session, 1, 0, Part::kK, bytes);
    EXPECT_THAT(status.ToString(), HasSubstr("segment 1 layer 0 K"));
    EXPECT_EQ((*session)->Commit().status(), status);
    EXPECT_EQ(other.budget->used(), used);
    return status;
  };
  const auto reseal = [&](std::function<void(BlobHeader&)> change) {
    return refused([&](std::vector<std::byte>& blob) {
      BlobHeader header = *OpenBlob(blob);
      change(header);
      SealBlob(header, blob);
    });
  };
  for (const size_t at : {0, 8, 40, 90, 96, 200}) {
    EXPECT_EQ(refused([&](auto& blob) { blob[at] ^= std::byte{1}; }).code(), Code::kDataLoss);
  }
  EXPECT_THAT(reseal([&](BlobHeader& h) { h.block_key = stored[2]->key; }).ToString(),
              HasSubstr("block_key"));
  EXPECT_THAT(reseal([](BlobHeader& h) { h.layer = 1; }).ToString(), HasSubstr("layer"));
  EXPECT_THAT(reseal([](BlobHeader& h) { h.part = Part::kV; }).ToString(), HasSubstr("part"));
  EXPECT_THAT(reseal([](BlobHeader& h) { h.dtype = KvDtype::kFp16; }).ToString(),
              HasSubstr("dtype"));
  EXPECT_THAT(reseal([](BlobHeader& h) { h.first_token = 0; }).ToString(),
              HasSubstr("first_token"));
  EXPECT_THAT(reseal([](BlobHeader& h) { h.profile_prefix[0] ^= 1; }).ToString(),
              HasSubstr("profile"));
  EXPECT_THAT(reseal([](BlobHeader& h) { h.kv_heads = 4; }).ToString(), HasSubstr("kv_heads"));
  EXPECT_THAT(reseal([](BlobHeader& h) { h.tokens = 64; }).ToString(), HasSubstr("tokens"));
  // Not finite, under a right checksum.
  const auto status = refused([&](std::vector<std::byte>& blob) {
    const BandLayout& band = context_->layout->part(0, Part::kK).heads[1].bands[0];
    const uint16_t nan = 0x7fc0;
    std::memcpy(blob.data() + kBlobHeaderBytes + band.scale_offset, &nan, sizeof nan);
    SealBlob(*OpenBlob(stored[1]->forms[SegmentForm::kCompact]->blob(0, Part::kK)->bytes()), blob);
  });
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(status.ToString(), HasSubstr("head 1, band 0"));
}

TEST_F(PutSessionTest, OverBudgetChunksAreRefusedAndCanBeSentAgain) {
  StoreFixture tight(kSmall.DenseBytes(kS) + 8 * kBufferOverheadBytes + 2000);
  PutManager puts(&tight.store, &backend_, 2);
  PutPlan plan = Plan(RandomTokens(rng_, kS));
  auto session = puts.Begin(plan);
  auto held = tight.budget->TryReserve(tight.budget->limit() - 100);
  const auto values = Values(0, 0, Part::kK);
  EXPECT_EQ(Send(**session, 0, 0, Part::kK, AsBytes(values)).code(), Code::kResourceExhausted);
  held->Release();
  ASSERT_TRUE(SendAll(**session, Source()).ok());
  ASSERT_TRUE((*session)->Commit().ok());
}

TEST_F(PutSessionTest, GapsOfAllPartsTogetherAreBounded) {
  auto session = Begin(Plan(RandomTokens(rng_, 8 * kS)));
  const std::vector<std::byte> byte(1);
  absl::Status status;
  int64_t sent = 0;
  int64_t parts = 0;
  for (int64_t segment = 0; segment < 8 && status.ok(); ++segment) {
    for (int i = 0; i < 2 * kSmall.layers && status.ok(); ++i, ++parts) {
      for (int64_t k = 0; k < kMaxRangesPerPart - 1 && status.ok(); ++k) {
        status = Send(*session, segment, i / 2, kParts[i % 2], byte, 2 * k);
        sent += status.ok() ? 1 : 0;
      }
    }
  }
  EXPECT_EQ(status.code(), Code::kResourceExhausted) << status;
  EXPECT_EQ(sent, kMaxGapsPerPut + parts);  // the first bytes of a part leave no gap behind them
  EXPECT_TRUE(Send(*session, 0, 0, Part::kK, byte, 1).ok());  // closes one
  EXPECT_TRUE(Send(*session, 0, 0, Part::kK, byte, 4000).ok());
  EXPECT_EQ(Send(*session, 0, 0, Part::kK, byte, 4002).code(), Code::kResourceExhausted);
}

TEST_F(PutSessionTest, RunningPutsAreBounded) {
  std::vector<std::unique_ptr<PutSession>> sessions;
  for (int i = 0; i < 3; ++i) sessions.push_back(Begin(Plan(RandomTokens(rng_, kS))));
  EXPECT_EQ(puts_.Begin(Plan(RandomTokens(rng_, kS))).status().code(), Code::kResourceExhausted);
  sessions.pop_back();
  EXPECT_TRUE(puts_.Begin(Plan(RandomTokens(rng_, kS))).ok());
}

TEST_F(PutSessionTest, TwoPutsOfTheSameSequenceBothSucceed) {
  const auto tokens = RandomTokens(rng_, 2 * kS);
  auto a = Begin(Plan(tokens));
  auto b = Begin(Plan(tokens));
  ASSERT_TRUE(SendAll(*a, Source()).ok());
  ASSERT_TRUE(SendAll(*b, Source()).ok());
  EXPECT_EQ(a->Commit()->segments_stored, 2);
  const int64_t used = f_.budget->used();
  EXPECT_EQ(b->Commit()->segments_deduplicated, 2);
  EXPECT_LT(f_.budget->used(), used);
}

}  // namespace
}  // namespace fourierkv
