// What KvCacheService promises to well-behaved clients, over real gRPC.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/base/bfloat16.h"
#include "compute/codec/reference_codec.h"
#include "proto/support/convert.h"
#include "slow_tier.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr auto kExact = v1::SEGMENT_FORM_EXACT;
constexpr auto kCompact = v1::SEGMENT_FORM_COMPACT;
constexpr auto kDense = v1::SEGMENT_FORM_DENSE;

uint32_t FreshSeed() { return std::random_device()(); }

class KvCacheServiceTest : public testing::Test {
 protected:
  KvCacheServiceTest() { PutProfile(service_); }

  static void PutProfile(TestService& service) {
    const auto id = service.client().PutProfile(SmallProfile(), Soon());
    ASSERT_TRUE(id.ok()) << id.status();
    ASSERT_EQ(*id, SmallProfile().Id());
  }

  v1::PutCommitted MustPut(const v1::PutHeader& header, const Sequence& sequence) {
    auto committed = PutSequence(service_.client(), header, sequence);
    EXPECT_TRUE(committed.ok()) << committed.status();
    return committed.ok() ? *committed : v1::PutCommitted();
  }

  v1::MatchPrefixResponse MustMatch(const v1::CacheNamespace& ns,
                                    const std::vector<uint32_t>& tokens,
                                    absl::Duration ttl = absl::ZeroDuration()) {
    v1::MatchPrefixRequest request;
    *request.mutable_namespace_() = ns;
    request.mutable_token_ids()->Assign(tokens.begin(), tokens.end());
    *request.mutable_lease_ttl() = ToProto(ttl);
    auto match = service_.client().MatchPrefix(request, Soon());
    EXPECT_TRUE(match.ok()) << match.status();
    return match.ok() ? *match : v1::MatchPrefixResponse();
  }

  Fetched MustFetch(const v1::GetSegmentsRequest& request) {
    auto fetched = Fetch(service_.client(), request);
    EXPECT_TRUE(fetched.ok()) << fetched.status();
    return fetched.ok() ? *std::move(fetched) : Fetched();
  }

  void ExpectSent(const Fetched& fetched, int request, const Sequence& sequence, int64_t segment) {
    for (int layer = 0; layer < kSmall.layers; ++layer) {
      for (const Part part : kParts) {
        EXPECT_EQ(fetched.Values(request, layer, part), sequence.PartOf(segment, layer, part))
            << "segment " << segment << " layer " << layer << " " << PartName(part);
      }
    }
  }

  static std::vector<v1::SegmentForm> Forms(const v1::MatchedSegment& segment) {
    std::vector<v1::SegmentForm> forms;
    for (const auto& held : segment.forms()) forms.push_back(held.form());
    return forms;
  }

  TestService service_;
  const v1::CacheNamespace ns_ = SmallWireNamespace();
};

TEST_F(KvCacheServiceTest, APutIsMatchedAndServedInEveryForm) {
  const uint32_t seed = FreshSeed();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  const Sequence sequence(seed, 3 * kS + 50);
  const auto committed = MustPut(MakePutHeader(ns_, sequence, /*keep_exact_from=*/2), sequence);
  EXPECT_EQ(committed.durability(), v1::DURABILITY_MEMORY);
  EXPECT_EQ(committed.stored_segments(), 4);
  EXPECT_EQ(committed.deduplicated_segments(), 0);
  EXPECT_EQ(committed.payload_bytes_received(), kSmall.DenseBytes(3 * kS + 50));
  EXPECT_EQ(committed.encoded_dense_bytes(), kSmall.DenseBytes(2 * kS));
  EXPECT_GT(committed.max_relative_error(), 0);
  EXPECT_LT(committed.max_relative_error(), 0.2);

  const auto match = MustMatch(ns_, sequence.tokens());
  const auto keys = KeysOf(ns_, sequence);
  ASSERT_EQ(match.segments_size(), 4);
  EXPECT_EQ(match.matched_tokens(), 3 * kS + 50);
  EXPECT_EQ(match.lease_id(), 0);
  EXPECT_THAT(Forms(match.segments(0)), ElementsAre(kExact));
  EXPECT_THAT(Forms(match.segments(1)), ElementsAre(kCompact));
  EXPECT_THAT(Forms(match.segments(2)), ElementsAre(kCompact, kExact));
  EXPECT_THAT(Forms(match.segments(3)), ElementsAre(kExact));
  uint64_t smallest = 0;
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(match.segments(i).block_key(), keys[i]);
    EXPECT_EQ(match.segments(i).index(), i);
    EXPECT_EQ(match.segments(i).tokens(), i < 3 ? kS : 50);
    smallest += match.segments(i).forms(0).bytes();
  }
  EXPECT_EQ(match.bytes(), smallest);

  // Exact: the very bits.
  const Fetched exact = MustFetch(MakeGet(keys, {kExact}));
  ASSERT_EQ(exact.plan.segments_size(), 4);
  for (const int i : {0, 2, 3}) {
    EXPECT_EQ(exact.plan.segments(i).form(), kExact);
    EXPECT_EQ(exact.plan.segments(i).max_relative_error(), 0);
    ExpectSent(exact, i, sequence, i);
  }
  EXPECT_EQ(exact.plan.segments(1).missing_reason(), v1::MISSING_REASON_FORM_NOT_HELD);
  EXPECT_EQ(exact.plan.segments(1).form(), v1::SEGMENT_FORM_UNSPECIFIED);
  EXPECT_EQ(exact.blobs.size(), 3 * 2 * kSmall.layers);

  // Compact and dense: what the reference says the payload means.
  const Fetched compact = MustFetch(MakeGet({keys[1], keys[2]}, {kCompact}));
  const Fetched dense = MustFetch(MakeGet({keys[1], keys[2]}, {kDense}));
  const ProfileLayout layout(SmallProfile());
  for (int i = 0; i < 2; ++i) {
    const v1::SegmentPlan& plan = compact.plan.segments(i);
    EXPECT_EQ(plan.form(), kCompact);
    EXPECT_EQ(dense.plan.segments(i).form(), kDense);
    EXPECT_EQ(plan.bytes(), layout.SegmentPayloadBytes() + 2 * kSmall.layers * kBlobHeaderBytes);
    EXPECT_FLOAT_EQ(plan.bits_per_element(),
                    8.0 * plan.bytes() / (kSmall.DenseBytes(kS) / kKvDtypeBytes));
    float largest = 0;
    float sum = 0;
    for (int layer = 0; layer < kSmall.layers; ++layer) {
      for (const Part part : kParts) {
        const FetchedBlob& blob = compact.blobs.at({i, layer, part});
        EXPECT_EQ(blob.header.block_key.ToString(), keys[i + 1]);
        EXPECT_EQ(blob.header.first_token, (i + 1) * kS);
        const auto meant =
            reference::DecodePart(layout.part(layer, part), BlobPayload(blob.bytes.span()));
        const auto values = dense.Values(i, layer, part);
        const auto sent = sequence.PartOf(i + 1, layer, part);
        ASSERT_EQ(values.size(), meant.size());
        double error = 0;
        double norm = 0;
        for (size_t e = 0; e < values.size(); ++e) {
          EXPECT_NEAR(Bf16ToFloat(values[e]), meant[e], std::abs(meant[e]) / 256 + 1e-5);
          const double x = Bf16ToFloat(sent[e]);
          error += (x - meant[e]) * (x - meant[e]);
          norm += x * x;
        }
        EXPECT_NEAR(blob.header.relative_error, std::sqrt(error / norm), 1e-4);
        largest = std::max(largest, blob.header.relative_error);
        sum += blob.header.relative_error;
      }
    }
    EXPECT_FLOAT_EQ(plan.max_relative_error(), largest);
    EXPECT_FLOAT_EQ(plan.mean_relative_error(), sum / (2 * kSmall.layers));
    EXPECT_FLOAT_EQ(dense.plan.segments(i).max_relative_error(), largest);
  }
}

TEST_F(KvCacheServiceTest, FormsAreTakenInTheOrderOfPreference) {
  const Sequence sequence(1, 3 * kS);
  MustPut(MakePutHeader(ns_, sequence, 2), sequence);
  const auto keys = KeysOf(ns_, sequence);
  const auto form = [&](const std::string& key, const std::vector<v1::SegmentForm>& forms) {
    return MustFetch(MakeGet({key}, forms)).plan.segments(0).form();
  };
  EXPECT_EQ(form(keys[2], {kExact, kCompact}), kExact);
  EXPECT_EQ(form(keys[2], {kCompact, kExact}), kCompact);
  EXPECT_EQ(form(keys[1], {kExact, kCompact}), kCompact);
  EXPECT_EQ(form(keys[1], {kExact, kDense}), kDense);
  // The sink is held exact; its dense form is a copy without error.
  const Fetched sink = MustFetch(MakeGet({keys[0]}, {kDense}));
  EXPECT_EQ(sink.plan.segments(0).form(), kDense);
  EXPECT_EQ(sink.plan.segments(0).max_relative_error(), 0);
  ExpectSent(sink, 0, sequence, 0);
}

TEST_F(KvCacheServiceTest, ATailMatchesOnlyWithItsWholeSequence) {
  const Sequence sequence(2, 2 * kS + 7);
  MustPut(MakePutHeader(ns_, sequence), sequence);
  auto longer = sequence.tokens();
  longer.push_back(5);
  EXPECT_EQ(MustMatch(ns_, longer).matched_tokens(), 2 * kS);
  auto shorter = sequence.tokens();
  shorter.pop_back();
  EXPECT_EQ(MustMatch(ns_, shorter).matched_tokens(), 2 * kS);
  EXPECT_EQ(MustMatch(ns_, sequence.tokens()).matched_tokens(), 2 * kS + 7);
  // A tail alone, without a full segment before it, is a sequence too.
  const Sequence tiny(3, 1);
  MustPut(MakePutHeader(ns_, tiny), tiny);
  EXPECT_EQ(MustMatch(ns_, tiny.tokens()).matched_tokens(), 1);
}

TEST_F(KvCacheServiceTest, MatchesByBlockKeysToo) {
  const Sequence sequence(4, 3 * kS);
  MustPut(MakePutHeader(ns_, sequence), sequence);
  v1::MatchPrefixRequest request;
  for (const std::string& key : KeysOf(ns_, sequence)) request.add_block_keys(key);
  request.add_block_keys(std::string(32, 'x'));
  const auto match = service_.client().MatchPrefix(request, Soon());
  ASSERT_TRUE(match.ok()) << match.status();
  EXPECT_EQ(match->matched_tokens(), 3 * kS);
}

TEST_F(KvCacheServiceTest, PuttingAgainMovesNoPayload) {
  const Sequence sequence(5, 3 * kS + 9);
  const v1::PutHeader header = MakePutHeader(ns_, sequence, 2);
  MustPut(header, sequence);
  const uint64_t used = service_.UsedBytes();
  auto again = service_.client().Put(header, Soon());
  ASSERT_TRUE(again.ok()) << again.status();
  for (int i = 0; i < 4; ++i) EXPECT_FALSE((*again)->needs(i));
  const auto committed = (*again)->Commit();
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->stored_segments(), 0);
  EXPECT_EQ(committed->deduplicated_segments(), 4);
  EXPECT_EQ(committed->payload_bytes_received(), 0);
  EXPECT_EQ(service_.UsedBytes(), used);
}

TEST_F(KvCacheServiceTest, ALaterPutMayAskForExactFormsThatAreMissing) {
  const Sequence sequence(6, 3 * kS);
  MustPut(MakePutHeader(ns_, sequence, /*keep_exact_from=*/3), sequence);
  auto put = service_.client().Put(MakePutHeader(ns_, sequence, /*keep_exact_from=*/1), Soon());
  ASSERT_TRUE(put.ok()) << put.status();
  EXPECT_FALSE((*put)->needs(0));
  EXPECT_TRUE((*put)->needs(1));
  EXPECT_TRUE((*put)->needs(2));
  put->reset();
  MustPut(MakePutHeader(ns_, sequence, 1), sequence);
  const auto match = MustMatch(ns_, sequence.tokens());
  EXPECT_THAT(Forms(match.segments(1)), ElementsAre(kCompact, kExact));
}

TEST_F(KvCacheServiceTest, APutContinuesAStoredPrefix) {
  const Sequence whole(7, 4 * kS + 3);
  const auto keys = KeysOf(ns_, whole);
  MustPut(MakePutHeader(ns_, whole, 0, 0, "", /*end=*/2), whole);
  const auto rest = MustPut(MakePutHeader(ns_, whole, 0, /*first=*/2, /*parent=*/keys[1]), whole);
  EXPECT_EQ(rest.stored_segments(), 3);
  const auto match = MustMatch(ns_, whole.tokens());
  EXPECT_EQ(match.matched_tokens(), 4 * kS + 3);
  const Fetched fetched = MustFetch(MakeGet(keys, {kExact}));
  for (int i = 0; i < 5; ++i) ExpectSent(fetched, i, whole, i);

  // A branch shares what it has in common.
  const Sequence branch(whole, 3 * kS, 8, 5 * kS);
  const auto committed = MustPut(MakePutHeader(ns_, branch), branch);
  EXPECT_EQ(committed.deduplicated_segments(), 3);
  EXPECT_EQ(committed.stored_segments(), 2);
  EXPECT_EQ(MustMatch(ns_, branch.tokens()).matched_tokens(), 5 * kS);
  EXPECT_EQ(MustMatch(ns_, whole.tokens()).matched_tokens(), 4 * kS + 3);
}

TEST_F(KvCacheServiceTest, CompactBlobsGoFromOneServiceToAnotherUnchanged) {
  const Sequence sequence(9, 3 * kS);
  const auto keys = KeysOf(ns_, sequence);
  MustPut(MakePutHeader(ns_, sequence, 3), sequence);
  const Fetched made = MustFetch(MakeGet({keys[1], keys[2]}, {kCompact}));

  TestService other;
  PutProfile(other);
  ASSERT_TRUE(
      PutSequence(other.client(), MakePutHeader(ns_, sequence, 0, 0, "", 1), sequence).ok());
  v1::PutHeader header = MakePutHeader(ns_, sequence, 0, 1, keys[0]);
  header.set_payload_form(kCompact);
  auto put = other.client().Put(header, Soon());
  ASSERT_TRUE(put.ok()) << put.status();
  for (const auto& [where, blob] : made.blobs) {
    const auto [i, layer, part] = where;
    ASSERT_TRUE((*put)->Send(i + 1, layer, part, blob.bytes.span()).ok());
  }
  const auto committed = (*put)->Commit();
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->stored_segments(), 2);
  EXPECT_EQ(committed->exact_bytes(), 0);
  EXPECT_EQ(committed->encoded_dense_bytes(), 0);
  EXPECT_GT(committed->max_relative_error(), 0);

  const auto copied = Fetch(other.client(), MakeGet({keys[1], keys[2]}, {kExact, kCompact}));
  ASSERT_TRUE(copied.ok()) << copied.status();
  ASSERT_EQ(copied->blobs.size(), made.blobs.size());
  for (const auto& [where, blob] : made.blobs) {
    const auto copy = copied->blobs.at(where).bytes.span();
    EXPECT_TRUE(
        std::equal(copy.begin(), copy.end(), blob.bytes.span().begin(), blob.bytes.span().end()));
  }
}

TEST_F(KvCacheServiceTest, CompactIsMadeOnDemandAndKept) {
  const Sequence sequence(10, 2 * kS);
  MustPut(MakePutHeader(ns_, sequence, 0), sequence);
  EXPECT_EQ(MustFetch(MakeGet({KeysOf(ns_, sequence)[1]}, {kCompact})).plan.segments(0).form(),
            kCompact);
  // The sink is never kept compact, but can be had so.
  const auto sink = MustFetch(MakeGet({KeysOf(ns_, sequence)[0]}, {kCompact}));
  EXPECT_EQ(sink.plan.segments(0).form(), kCompact);
  EXPECT_EQ(sink.blobs.size(), 2 * kSmall.layers);
}

TEST_F(KvCacheServiceTest, WithoutAProfileNothingIsCompressed) {
  const v1::CacheNamespace exact_ns = SmallWireNamespace(/*with_profile=*/false);
  const Sequence sequence(11, 2 * kS);
  const auto committed = MustPut(MakePutHeader(exact_ns, sequence, 2), sequence);
  EXPECT_EQ(committed.compact_bytes(), 0);
  const auto keys = KeysOf(exact_ns, sequence);
  const Fetched fetched = MustFetch(MakeGet(keys, {kExact}));
  for (int i = 0; i < 2; ++i) ExpectSent(fetched, i, sequence, i);
  EXPECT_EQ(MustFetch(MakeGet(keys, {kCompact})).plan.segments(1).missing_reason(),
            v1::MISSING_REASON_FORM_NOT_HELD);
}

TEST_F(KvCacheServiceTest, AGetMayAskForARangeOfLayers) {
  const Sequence sequence(12, 2 * kS);
  MustPut(MakePutHeader(ns_, sequence), sequence);
  v1::GetSegmentsRequest request = MakeGet(KeysOf(ns_, sequence), {kExact});
  request.set_first_layer(1);
  const Fetched last = MustFetch(request);
  ASSERT_EQ(last.blobs.size(), 4);
  for (const auto& [where, blob] : last.blobs) EXPECT_EQ(std::get<1>(where), 1);
  EXPECT_EQ(last.plan.segments(0).bytes(), 2 * (kBlobHeaderBytes + kSmall.PartBytes(kS)));
  request.set_first_layer(0);
  request.set_layer_count(1);
  const Fetched first = MustFetch(request);
  ASSERT_EQ(first.blobs.size(), 4);
  for (const auto& [where, blob] : first.blobs) EXPECT_EQ(std::get<1>(where), 0);
  for (const auto& [first_layer, count] : {std::pair{2, 0}, std::pair{1, 2}, std::pair{0, 3}}) {
    request.set_first_layer(first_layer);
    request.set_layer_count(count);
    const auto refused = Fetch(service_.client(), request);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kOutOfRange);
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr("the model has 2"));
  }
}

TEST_F(KvCacheServiceTest, AFetchOfUnknownKeysNamesThemMissing) {
  const Sequence sequence(13, kS);
  MustPut(MakePutHeader(ns_, sequence), sequence);
  const Fetched fetched =
      MustFetch(MakeGet({std::string(32, 'a'), KeysOf(ns_, sequence)[0]}, {kExact}));
  ASSERT_EQ(fetched.plan.segments_size(), 2);
  EXPECT_EQ(fetched.plan.segments(0).missing_reason(), v1::MISSING_REASON_NOT_STORED);
  ExpectSent(fetched, 1, sequence, 0);
  const Fetched nothing = MustFetch(MakeGet({std::string(32, 'a')}, {kExact, kCompact, kDense}));
  EXPECT_EQ(nothing.plan.segments(0).missing_reason(), v1::MISSING_REASON_NOT_STORED);
  EXPECT_THAT(nothing.blobs, IsEmpty());
}

TEST_F(KvCacheServiceTest, ALeaseKeepsSegmentsUntilReleasedOrExpired) {
  const Sequence sequence(14, 2 * kS);
  MustPut(MakePutHeader(ns_, sequence), sequence);
  const Digest first = *Digest::FromRaw(KeysOf(ns_, sequence)[0], "key");

  const auto match = MustMatch(ns_, sequence.tokens(), absl::Minutes(10));
  EXPECT_NE(match.lease_id(), 0);
  EXPECT_EQ(FromProto(match.lease_ttl()), absl::Minutes(10));
  EXPECT_EQ(service_.Stats().leases(), 1);
  const auto refused = service_.client().Delete({first}, Soon());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(MustMatch(ns_, sequence.tokens()).segments_size(), 2);

  EXPECT_TRUE(service_.client().Release(match.lease_id(), Soon()).ok());
  EXPECT_TRUE(service_.client().Release(match.lease_id(), Soon()).ok()) << "twice is no error";
  EXPECT_EQ(service_.Stats().leases(), 0);

  MustMatch(ns_, sequence.tokens(), absl::Milliseconds(30));
  absl::StatusOr<v1::DeleteResponse> removed = absl::UnknownError("");
  for (const absl::Time deadline = Soon(); !removed.ok() && absl::Now() < deadline;) {
    absl::SleepFor(absl::Milliseconds(5));
    removed = service_.client().Delete({first}, Soon());
  }
  ASSERT_TRUE(removed.ok()) << removed.status();
  EXPECT_EQ(removed->removed_segments(), 2) << "and what continues it";
}

TEST_F(KvCacheServiceTest, NoLeaseIsGivenOnNothing) {
  const Sequence sequence(15, kS);
  EXPECT_EQ(MustMatch(ns_, sequence.tokens(), absl::Minutes(1)).lease_id(), 0);
  EXPECT_EQ(service_.Stats().leases(), 0);
}

TEST_F(KvCacheServiceTest, DeleteTakesEverythingBehindAndGivesTheMemoryBack) {
  const uint64_t empty = service_.UsedBytes();
  const Sequence sequence(16, 4 * kS + 5);
  MustPut(MakePutHeader(ns_, sequence), sequence);
  std::vector<Digest> keys;
  for (const auto& raw : KeysOf(ns_, sequence)) keys.push_back(*Digest::FromRaw(raw, "key"));
  const Digest unknown = SmallProfile().Id();

  auto stored = service_.client().Exists({keys[0], unknown, keys[4]}, Soon());
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_THAT(*stored, ElementsAre(true, false, true));

  auto removed = service_.client().Delete({keys[2], unknown}, Soon());
  ASSERT_TRUE(removed.ok()) << removed.status();
  EXPECT_EQ(removed->removed_segments(), 3);
  EXPECT_GT(removed->freed_bytes(), kSmall.DenseBytes(2 * kS));
  stored = service_.client().Exists(keys, Soon());
  ASSERT_TRUE(stored.ok());
  EXPECT_THAT(*stored, ElementsAre(true, true, false, false, false));

  ASSERT_TRUE(service_.client().Delete({keys[0]}, Soon()).ok());
  EXPECT_EQ(service_.UsedBytes(), empty);
  EXPECT_EQ(service_.client().Delete({}, Soon())->removed_segments(), 0);
}

// A tier that does not tell what it has while it is mute.
class MuteTier : public SlowTier {
 public:
  MuteTier() : SlowTier(absl::ZeroDuration()) {}
  absl::StatusOr<std::vector<std::optional<TierSegment>>> Describe(
      std::span<const BlockKey> keys, const Patience& patience) override {
    if (mute) return absl::UnavailableError("mute");
    return SlowTier::Describe(keys, patience);
  }
  std::atomic<bool> mute{false};
};

TEST_F(KvCacheServiceTest, WhatWasAnsweredAsDeletedIsAlsoGoneFromATierThatDidNotTellOfIt) {
  const auto tier = std::make_shared<MuteTier>();
  service_.core().tiers.AddTier(tier);
  const Sequence sequence(16, 2 * kS);
  v1::PutHeader header = MakePutHeader(ns_, sequence);
  header.set_durability(v1::DURABILITY_DISK);
  MustPut(header, sequence);
  while (service_.core().store.Evict(int64_t{1} << 40) > 0) continue;
  const Digest first = *Digest::FromRaw(KeysOf(ns_, sequence)[0], "key");
  ASSERT_THAT(*service_.client().Exists({first}, Soon()), ElementsAre(true));
  tier->mute = true;
  const auto removed = service_.client().Delete({first}, Soon());
  tier->mute = false;
  ASSERT_TRUE(removed.ok()) << removed.status();
  EXPECT_THAT(*service_.client().Exists({first}, Soon()), ElementsAre(false));
}

// What belongs to another namespace looks exactly like what is not there.
TEST_F(KvCacheServiceTest, NamespacesAreIsolated) {
  const Sequence sequence(17, 2 * kS);
  MustPut(MakePutHeader(ns_, sequence), sequence);
  const auto keys = KeysOf(ns_, sequence);
  const auto other_profile = service_.client().PutProfile(SmallProfile("other"), Soon());
  ASSERT_TRUE(other_profile.ok());
  using Edit = std::function<void(v1::CacheNamespace&)>;
  const std::vector<std::pair<const char*, Edit>> edits = {
      {"tenant_salt", [](auto& ns) { ns.set_tenant_salt("secret"); }},
      {"model_id", [](auto& ns) { ns.set_model_id("small2"); }},
      {"model_revision", [](auto& ns) { ns.set_model_revision("r2"); }},
      {"weight_dtype", [](auto& ns) { ns.set_weight_dtype("fp16"); }},
      {"kv_dtype", [](auto& ns) { ns.set_kv_dtype("fp16"); }},
      {"rope", [](auto& ns) { ns.set_rope("theta=1"); }},
      {"tp", [](auto& ns) { ns.set_tp_size(2); }},
      {"lora_id", [](auto& ns) { ns.set_lora_id("a"); }},
      {"profile_id", [&](auto& ns) { ns.set_profile_id(other_profile->ToString()); }},
      {"no profile", [](auto& ns) { ns.clear_profile_id(); }},
  };
  for (const auto& [name, edit] : edits) {
    SCOPED_TRACE(name);
    v1::CacheNamespace foreign = ns_;
    edit(foreign);
    EXPECT_EQ(MustMatch(foreign, sequence.tokens()).segments_size(), 0);

    v1::GetSegmentsRequest get = MakeGet(keys, {kExact});
    *get.mutable_namespace_() = foreign;
    const Fetched fetched = MustFetch(get);
    EXPECT_EQ(fetched.plan.segments(0).missing_reason(), v1::MISSING_REASON_NOT_STORED);
    EXPECT_THAT(fetched.blobs, IsEmpty());

    // Nor can anybody put behind it.
    const auto refusal = [&](const std::string& parent) {
      auto put = service_.client().Put(MakePutHeader(foreign, sequence, 0, 1, parent), Soon());
      return std::string(put.status().message());
    };
    const std::string missing(32, 'z');
    std::string of_missing = refusal(missing);
    const std::string hex = Digest::FromRaw(missing, "key")->ToHex();
    ASSERT_THAT(of_missing, HasSubstr(hex));
    of_missing.replace(of_missing.find(hex), hex.size(), Digest::FromRaw(keys[0], "key")->ToHex());
    EXPECT_EQ(refusal(keys[0]), of_missing);
  }
  v1::GetSegmentsRequest own = MakeGet(keys, {kExact});
  *own.mutable_namespace_() = ns_;
  EXPECT_EQ(MustFetch(own).plan.segments(0).form(), kExact);
}

TEST_F(KvCacheServiceTest, TheSameTokensInTwoNamespacesAreTwoSequences) {
  v1::CacheNamespace foreign = ns_;
  foreign.set_tenant_salt("other tenant");
  const Sequence mine(18, kS);
  const Sequence theirs(mine, kS, 19, kS + 1);  // the same first segment
  MustPut(MakePutHeader(ns_, mine), mine);
  const auto committed = MustPut(MakePutHeader(foreign, theirs), theirs);
  EXPECT_EQ(committed.deduplicated_segments(), 0);
}

TEST_F(KvCacheServiceTest, FetchesTeachTheServiceItsBandwidth) {
  const Sequence sequence(20, 24 * kS);
  MustPut(MakePutHeader(ns_, sequence), sequence);
  EXPECT_FALSE(MustMatch(ns_, sequence.tokens()).has_estimated_fetch_time());
  MustFetch(MakeGet(KeysOf(ns_, sequence), {kExact}));
  const auto match = MustMatch(ns_, sequence.tokens());
  EXPECT_GT(FromProto(match.estimated_fetch_time()), absl::ZeroDuration());
}

TEST_F(KvCacheServiceTest, DamagedMemoryIsNeverServed) {
  const Sequence sequence(21, 3 * kS);
  MustPut(MakePutHeader(ns_, sequence, 3), sequence);
  const auto keys = KeysOf(ns_, sequence);
  const Digest second = *Digest::FromRaw(keys[1], "key");
  const auto stored = service_.core().store.Get({&second, 1});
  Damage(stored[0]->forms[SegmentForm::kCompact]->blob(1, Part::kV), 200);

  const auto fetched = Fetch(service_.client(), MakeGet(keys, {kExact, kCompact}));
  EXPECT_EQ(fetched.status().code(), absl::StatusCode::kDataLoss) << fetched.status();
  EXPECT_EQ(service_.Stats().corrupt_segments(), 1);
  EXPECT_EQ(MustMatch(ns_, sequence.tokens()).matched_tokens(), kS);
  EXPECT_THAT(*service_.client().Exists({second}, Soon()), ElementsAre(false));
  EXPECT_EQ(MustFetch(MakeGet({keys[1]}, {kCompact})).plan.segments(0).missing_reason(),
            v1::MISSING_REASON_NOT_STORED);

  // Putting the sequence again repairs just that.
  const auto repaired = MustPut(MakePutHeader(ns_, sequence, 3), sequence);
  EXPECT_EQ(repaired.payload_bytes_received(), kSmall.DenseBytes(kS));
  EXPECT_EQ(MustMatch(ns_, sequence.tokens()).matched_tokens(), 3 * kS);
  EXPECT_EQ(MustFetch(MakeGet(keys, {kExact, kCompact})).blobs.size(), 3 * 2 * kSmall.layers);
}

TEST_F(KvCacheServiceTest, EvictionUnderASmallBudgetKeepsServingRightBytes) {
  const uint32_t seed = FreshSeed();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  ServiceLimits limits;
  limits.memory_bytes = 400 << 10;  // about six sequences
  TestService small(limits);
  PutProfile(small);
  std::vector<Sequence> sequences;
  for (int i = 0; i < 40; ++i) {
    // Every third continues an earlier one.
    if (i % 3 == 2) {
      sequences.emplace_back(sequences[i - 1], 2 * kS, seed + i, 3 * kS + i);
    } else {
      sequences.emplace_back(seed + i, 3 * kS + i);
    }
    const auto committed =
        PutSequence(small.client(), MakePutHeader(ns_, sequences.back(), 2), sequences.back());
    ASSERT_TRUE(committed.ok()) << committed.status();
    ASSERT_LE(small.Stats().used_bytes(), limits.memory_bytes);
    for (const int back : {0, 1, 5, 20}) {
      if (back > i) continue;
      const Sequence& sequence = sequences[i - back];
      const auto keys = KeysOf(ns_, sequence);
      const auto fetched = Fetch(small.client(), MakeGet(keys, {kExact}));
      ASSERT_TRUE(fetched.ok()) << fetched.status();
      for (int segment = 0; segment < static_cast<int>(keys.size()); ++segment) {
        if (fetched->plan.segments(segment).form() == kExact) {
          ExpectSent(*fetched, segment, sequence, segment);
        } else if (back == 0) {
          EXPECT_EQ(segment, 1) << "what was just put is there";
        }
      }
    }
  }
  EXPECT_GT(small.Stats().evicted_segments(), 0);
  EXPECT_EQ(small.Stats().corrupt_segments(), 0);
}

TEST_F(KvCacheServiceTest, ManyClientsAtOnceSeeWholeSequencesOnly) {
  const Sequence base(22, 3 * kS);
  std::vector<std::thread> clients;
  for (int c = 0; c < 4; ++c) {
    clients.emplace_back([&, c] {
      auto client = KvClient::Connect(service_.address(), absl::Seconds(10));
      ASSERT_TRUE(client.ok()) << client.status();
      for (int round = 0; round < 8; ++round) {
        const Sequence sequence(base, 2 * kS, 100 + 10 * (c % 2) + round, 4 * kS);
        const auto committed = PutSequence(**client, MakePutHeader(ns_, sequence), sequence);
        ASSERT_TRUE(committed.ok()) << committed.status();
        const auto fetched = Fetch(**client, MakeGet(KeysOf(ns_, sequence), {kExact}));
        ASSERT_TRUE(fetched.ok()) << fetched.status();
        for (int i = 0; i < 4; ++i) ExpectSent(*fetched, i, sequence, i);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  // Two shared, and two for each of 2 x 8 different ends.
  EXPECT_EQ(service_.Stats().segments(), 2 + 2 * 16);
}

TEST_F(KvCacheServiceTest, SegmentsAreListedParentsFirst) {
  const Sequence sequence(23, 3 * kS + 1);
  MustPut(MakePutHeader(ns_, sequence, 2), sequence);
  MustMatch(ns_, sequence.tokens(), absl::Minutes(1));
  const auto keys = KeysOf(ns_, sequence);
  const auto rows = service_.client().ListSegments(0, Soon());
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 4);
  for (int i = 0; i < 4; ++i) {
    const v1::StoredSegment& row = (*rows)[i];
    EXPECT_EQ(row.block_key(), keys[i]);
    EXPECT_EQ(row.parent_key(), i == 0 ? row.namespace_key() : keys[i - 1]);
    EXPECT_EQ(row.profile_id(), ns_.profile_id());
    EXPECT_EQ(row.index(), i);
    EXPECT_EQ(row.leases(), 1);
    EXPECT_EQ(row.dense_bytes(), kSmall.DenseBytes(i < 3 ? kS : 1));
    EXPECT_EQ(row.forms_size(), i == 2 ? 2 : 1);
  }
  EXPECT_EQ(service_.client().ListSegments(2, Soon())->size(), 2);
}

}  // namespace
}  // namespace fourierkv
