// Versions of blocks: backends may keep copies of what has one, and must notice all that changes.

#include <algorithm>
#include <cmath>

#include "compute/base/unique_id.h"
#include "gtest/gtest.h"
#include "tests/compute/backend/backend_test_util.h"
#include "tests/compute/backend/backend_under_test.h"

namespace fourierkv {
namespace {

constexpr int kQueryHeads = 4;

class BlockVersions : public BackendTest {
 protected:
  std::vector<float> Attend(const LayerKv& kv, int query_tokens = 1) {
    std::vector<float> out(static_cast<size_t>(query_tokens) * kQueryHeads * test_.head_dim, NAN);
    AttentionArgs args;
    args.kv = kv;
    args.query_heads = kQueryHeads;
    args.query_tokens = query_tokens;
    args.scale = 0.125f;
    args.q = q_.data();
    args.out = out.data();
    const absl::Status status = backend_->Attend(args);
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }

  // The same blocks as if nobody had seen them before.
  std::vector<float> AttendAfresh(LayerKv kv, int query_tokens = 1) {
    std::vector<ExactBlock> exact(kv.exact.begin(), kv.exact.end());
    std::vector<CompactBlock> compact(kv.compact.begin(), kv.compact.end());
    for (ExactBlock& block : exact) block.version = 0;
    for (CompactBlock& block : compact) block.version = 0;
    kv.exact = exact;
    kv.compact = compact;
    return Attend(kv, query_tokens);
  }

  const uint64_t seed_ = FreshSeed();
  std::mt19937_64 random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
  const CodecCase test_ = {.head_dim = 64, .kv_heads = 2};
  const std::vector<float> q_ = RandomQueries(8 * kQueryHeads * 64, 1, random_);
};

TEST_F(BlockVersions, AppendedTokensAreSeen) {
  constexpr int kMost = 300;
  const TestCache cache(test_, 1, {kMost}, random_);
  LayerKv kv = cache.View();
  ExactBlock exact = kv.exact[0];
  CompactBlock compact = kv.compact[0];
  exact.version = NextUniqueId();
  compact.version = NextUniqueId();
  kv.exact = {&exact, 1};
  kv.compact = {&compact, 1};
  for (const int tokens : {1, 2, 63, 64, 65, 100, 128, 129, kMost, 77}) {  // fewer again, at last
    SCOPED_TRACE(tokens);
    exact.tokens = tokens;
    EXPECT_EQ(Attend(kv), AttendAfresh(kv));
    const int query_tokens = std::min(tokens, 5);
    EXPECT_EQ(Attend(kv, query_tokens), AttendAfresh(kv, query_tokens));
  }
}

TEST_F(BlockVersions, OtherVersionsAreOtherValues) {
  const TestCache first(test_, 1, {40}, random_), second(test_, 1, {40}, random_);
  LayerKv kv = first.View();
  ExactBlock exact = kv.exact[0];
  const int64_t size = int64_t{40} * 64 * 2;
  std::vector<uint16_t> k(exact.k, exact.k + size), v(exact.v, exact.v + size);
  exact.k = k.data();
  exact.v = v.data();
  kv.exact = {&exact, 1};
  exact.version = NextUniqueId();
  const std::vector<float> before = Attend(kv);
  std::copy_n(second.View().exact[0].k, size, k.data());
  std::copy_n(second.View().exact[0].v, size, v.data());
  exact.version = NextUniqueId();
  const std::vector<float> after = Attend(kv);
  EXPECT_NE(before, after);
  EXPECT_EQ(after, AttendAfresh(kv));
}

TEST_F(BlockVersions, BlocksWithoutOneMayChangeAtAnyTime) {
  const TestCache first(test_, 2, {70}, random_), second(test_, 2, {70}, random_);
  LayerKv kv = first.View();
  const std::vector<float> want_first = Attend(kv);
  ExactBlock exact = kv.exact[0];
  const int64_t size = int64_t{70} * 64 * 2;
  std::vector<uint16_t> k(exact.k, exact.k + size), v(exact.v, exact.v + size);
  exact.k = k.data();
  exact.v = v.data();
  kv.exact = {&exact, 1};
  EXPECT_EQ(Attend(kv), want_first);
  std::copy_n(second.View().exact[0].k, size, k.data());
  std::copy_n(second.View().exact[0].v, size, v.data());
  LayerKv other = second.View();
  other.compact = kv.compact;
  other.k_layout = kv.k_layout;
  other.v_layout = kv.v_layout;
  EXPECT_EQ(Attend(kv), Attend(other));
}

TEST_F(BlockVersions, AddressesTellBlocksOfOneVersionApart) {
  const TestCache cache(test_, 0, {50}, random_);
  LayerKv kv = cache.View();
  ExactBlock exact = kv.exact[0];
  exact.version = NextUniqueId();
  kv.exact = {&exact, 1};
  Attend(kv);
  exact.k += 10 * 64;  // a part of it
  exact.v += 10 * 64;
  exact.tokens -= 10;
  EXPECT_EQ(Attend(kv), AttendAfresh(kv));
}

}  // namespace
}  // namespace fourierkv
