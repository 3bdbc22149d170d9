// Everything that can be wrong with AttentionArgs is refused before any work.

#include <cmath>
#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/compute/backend/backend_test_util.h"
#include "tests/compute/backend/backend_under_test.h"

namespace fourierkv {
namespace {

class AttendArgs : public BackendTest {
 protected:
  AttendArgs() {
    good_.kv = cache_.View();
    exact_.assign(good_.kv.exact.begin(), good_.kv.exact.end());
    compact_.assign(good_.kv.compact.begin(), good_.kv.compact.end());
    good_.kv.exact = exact_;
    good_.kv.compact = compact_;
    good_.query_heads = 4;
    good_.scale = 0.125f;
    good_.q = q_.data();
    good_.out = out_.data();
  }

  // Applies `spoil` to good arguments and expects a refusal that names `field`.
  void ExpectRefused(const char* field, const std::function<void(AttentionArgs&)>& spoil) {
    SCOPED_TRACE(field);
    AttentionArgs args = good_;
    spoil(args);
    const absl::Status status = backend_->Attend(args);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(field));
  }

  std::mt19937_64 random_{FreshSeed()};
  const CodecCase test_ = {.head_dim = 64, .kv_heads = 2};
  const TestCache cache_{test_, 2, {10, 3}, random_};
  const CodecCase wide_test_ = {.head_dim = 128, .kv_heads = 2};
  const std::unique_ptr<ProfileLayout> wide_ = RandomLayout(wide_test_, random_);
  const CodecCase short_test_ = {.head_dim = 64, .kv_heads = 2, .segment_tokens = 128};
  const std::unique_ptr<ProfileLayout> short_ = RandomLayout(short_test_, random_);
  std::vector<ExactBlock> exact_;
  std::vector<CompactBlock> compact_;
  std::vector<float> q_ = RandomQueries(8 * 4 * 64, 1, random_);
  std::vector<float> out_ = std::vector<float>(q_.size());
  AttentionArgs good_;
};

TEST_F(AttendArgs, GoodOnesPass) {
  EXPECT_TRUE(backend_->Attend(good_).ok());
  good_.query_tokens = 3;
  EXPECT_TRUE(backend_->Attend(good_).ok());
}

TEST_F(AttendArgs, NullPointers) {
  ExpectRefused("q is null", [](auto& args) { args.q = nullptr; });
  ExpectRefused("out is null", [](auto& args) { args.out = nullptr; });
  ExpectRefused("k_layout", [](auto& args) { args.kv.k_layout = nullptr; });
  ExpectRefused("v_layout", [](auto& args) { args.kv.v_layout = nullptr; });
  exact_[1].v = nullptr;
  ExpectRefused("exact[1]", [](auto&) {});
  exact_[1] = exact_[0];
  compact_[1].k = nullptr;
  ExpectRefused("compact[1]", [](auto&) {});
}

TEST_F(AttendArgs, Shapes) {
  ExpectRefused("kv_heads", [](auto& args) { args.kv.kv_heads = 0; });
  ExpectRefused("kv_heads", [](auto& args) { args.kv.kv_heads = -3; });
  ExpectRefused("head_dim", [](auto& args) { args.kv.head_dim = 0; });
  ExpectRefused("head_dim", [](auto& args) { args.kv.head_dim = 12; });
  ExpectRefused("query_heads", [](auto& args) { args.query_heads = 0; });
  ExpectRefused("query_heads", [](auto& args) { args.query_heads = 3; });
  ExpectRefused("query_heads", [](auto& args) { args.query_heads = 2 * 65; });
  ExpectRefused("query_tokens", [](auto& args) { args.query_tokens = 0; });
  ExpectRefused("query_tokens", [](auto& args) { args.query_tokens = -1; });
  ExpectRefused("dtype", [](auto& args) { args.kv.dtype = static_cast<KvDtype>(0); });
  ExpectRefused("scale", [](auto& args) { args.scale = NAN; });
}

TEST_F(AttendArgs, LayoutsOfAnotherModel) {
  ExpectRefused("k_layout", [&](auto& args) { args.kv.k_layout = &wide_->part(0, Part::kK); });
  ExpectRefused("v_layout", [&](auto& args) { args.kv.v_layout = &wide_->part(0, Part::kV); });
  ExpectRefused("tokens", [&](auto& args) { args.kv.v_layout = &short_->part(0, Part::kV); });
  ExpectRefused("k_layout", [](auto& args) { args.kv.kv_heads = 1; });
}

TEST_F(AttendArgs, Blocks) {
  ExpectRefused("no tokens", [](auto& args) {
    args.kv.exact = {};
    args.kv.compact = {};
  });
  exact_[0].tokens = -1;
  ExpectRefused("exact[0].tokens", [](auto&) {});
  exact_[0].tokens = 10;
  exact_[0].head_stride = 10 * 64 - 1;
  ExpectRefused("head_stride", [](auto&) {});
  exact_[0].head_stride = 10 * 64;
  compact_[0].v += 1;
  ExpectRefused("aligned", [](auto&) {});
}

TEST_F(AttendArgs, QueriesMustOwnTheLastTokens) {
  ExpectRefused("query_tokens", [](auto& args) { args.query_tokens = 4; });  // the last block has 3
  ExpectRefused("query_tokens", [](auto& args) {
    args.query_tokens = 2;
    args.kv.exact = {};
  });
}

TEST_F(AttendArgs, LayoutsAreNotNeededWithoutCompactBlocks) {
  good_.kv.compact = {};
  good_.kv.k_layout = good_.kv.v_layout = nullptr;
  EXPECT_TRUE(backend_->Attend(good_).ok());
}

}  // namespace
}  // namespace fourierkv
