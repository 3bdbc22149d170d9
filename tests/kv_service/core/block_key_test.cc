#include "kv_service/core/block_key.h"

#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <set>

#include "core_fixtures.h"

namespace fourierkv {
namespace {

// The vectors of docs/keys.md, computed by the Python program there with hashlib.
CacheNamespace VectorB() {
  CacheNamespace ns;
  ns.tenant_salt = "salt";
  ns.model_id = "meta-llama/Llama-3.1-8B";
  ns.model_revision = "0e9e39f";
  ns.weight_dtype = "bf16";
  ns.kv_dtype = KvDtype::kFp16;
  ns.geometry = {.layers = 16, .kv_heads = 4, .head_dim = 64};
  ns.rope = "theta=500000";
  ns.tp_rank = 1;
  ns.tp_size = 2;
  ns.lora_id = "adapter-7";
  ns.profile_id.emplace();
  std::iota(ns.profile_id->bytes.begin(), ns.profile_id->bytes.end(), uint8_t{1});
  ns.segment_tokens = 128;
  return ns;
}

TEST(BlockKeyTest, RootOfANamespaceWithoutOptionalFieldsIsThePublishedVector) {
  CacheNamespace ns;
  ns.model_id = "llama";
  ns.model_revision = "r1";
  ns.weight_dtype = "bf16";
  ns.geometry = {.layers = 32, .kv_heads = 8, .head_dim = 128};
  EXPECT_EQ(ns.RootKey().ToHex(),
            "b5aaa578a9e01057317e335d50aa482e631c736e8d9e94ec4600a03b6c7fbd9d");
}

TEST(BlockKeyTest, ChainOfASequenceIsThePublishedVector) {
  std::vector<uint32_t> tokens;
  for (uint32_t i = 0; i < 128; ++i) tokens.push_back(i);
  for (uint32_t i = 0; i < 128; ++i) tokens.push_back(128256 - i);
  for (uint32_t id : {1u, 2u, 0xffffffffu}) tokens.push_back(id);
  EXPECT_EQ(VectorB().RootKey().ToHex(),
            "b22ac17eda9cd765e5af0034a780ffe3d2437bd55a9ec7169df27a8479959b27");
  const KeyChain chain = ChainKeys(VectorB(), tokens);
  ASSERT_EQ(chain.segments.size(), 2);
  EXPECT_EQ(chain.segments[0].ToHex(),
            "3ea3ade635f9f388e9c61ce04b853b53b3e8ccc4ce50393ae39ab59c300a21a7");
  EXPECT_EQ(chain.segments[1].ToHex(),
            "7fb3811abef30640cc57af6460fe397000480b466715a277b0525ce6634b3afd");
  ASSERT_TRUE(chain.tail.has_value());
  EXPECT_EQ(chain.tail->ToHex(),
            "892c61d2a82cec3f46f16ff352831b6558741437a0ad7fba22927cb9a69317b9");
}

TEST(BlockKeyTest, EveryFieldOfTheNamespaceChangesTheRoot) {
  const std::vector<std::function<void(CacheNamespace&)>> changes = {
      [](CacheNamespace&) {},
      [](CacheNamespace& ns) { ns.tenant_salt += "x"; },
      [](CacheNamespace& ns) { ns.model_id += "x"; },
      [](CacheNamespace& ns) { ns.model_revision += "x"; },
      [](CacheNamespace& ns) { ns.weight_dtype = "fp16"; },
      [](CacheNamespace& ns) { ns.kv_dtype = KvDtype::kBf16; },
      [](CacheNamespace& ns) { ns.geometry.layers++; },
      [](CacheNamespace& ns) { ns.geometry.kv_heads++; },
      [](CacheNamespace& ns) { ns.geometry.head_dim += 8; },
      [](CacheNamespace& ns) { ns.rope += "x"; },
      [](CacheNamespace& ns) { ns.tp_rank = 0; },
      [](CacheNamespace& ns) { ns.tp_size = 4; },
      [](CacheNamespace& ns) { ns.lora_id.clear(); },
      [](CacheNamespace& ns) { ns.profile_id->bytes[31] ^= 1; },
      [](CacheNamespace& ns) { ns.profile_id.reset(); },
      [](CacheNamespace& ns) { ns.segment_tokens = 256; },
      // The same characters, split otherwise between two fields.
      [](CacheNamespace& ns) {
        ns.model_id += ns.model_revision[0], ns.model_revision.erase(0, 1);
      },
  };
  std::set<Digest> roots;
  for (const auto& change : changes) {
    CacheNamespace ns = VectorB();
    change(ns);
    roots.insert(ns.RootKey());
  }
  EXPECT_EQ(roots.size(), changes.size());
}

TEST(BlockKeyTest, TailsAndSegmentsOfTheSameTokensDiffer) {
  const std::vector<uint32_t> tokens = {1, 2, 3};
  EXPECT_NE(NextKey(Digest{}, tokens), TailKey(Digest{}, tokens));
}

TEST(BlockKeyTest, AKeyCoversEverythingBeforeIt) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  const CacheNamespace ns = SmallNamespace();
  std::vector<uint32_t> tokens = RandomTokens(rng, 3 * kS + 5);
  const KeyChain before = ChainKeys(ns, tokens);
  ASSERT_EQ(before.segments.size(), 3);
  tokens[kS + rng() % kS] ^= 1u << (rng() % 32);
  const KeyChain after = ChainKeys(ns, tokens);
  EXPECT_EQ(before.segments[0], after.segments[0]);
  EXPECT_NE(before.segments[1], after.segments[1]);
  EXPECT_NE(before.segments[2], after.segments[2]);
  EXPECT_NE(before.tail, after.tail);
}

TEST(BlockKeyTest, AWholeSequenceIsThePublishedVector) {
  CacheNamespace ns = VectorB();
  ns.segment_tokens = 0;
  ASSERT_TRUE(ns.Validate().ok()) << ns.Validate();
  EXPECT_EQ(ns.RootKey().ToHex(),
            "7739bd8910f23a2bf0f8ba00026bc3a6eaa932e631656184b28fafb1b3f2d216");
  std::vector<uint32_t> tokens;
  for (uint32_t i = 0; i < 128; ++i) tokens.push_back(i);
  EXPECT_EQ(SequenceKey(ns.RootKey(), 192, tokens).ToHex(),
            "a287396095173cd2f5248da840f103f75004fc898d0cb8cea7649f5b204586e8");
  ns.profile_id.reset();
  EXPECT_FALSE(ns.Validate().ok());  // without a profile there are segments
}

TEST(BlockKeyTest, WholeSegmentsHaveNoTailAndAnEmptySequenceHasNoKeys) {
  std::mt19937 rng(1);
  EXPECT_FALSE(ChainKeys(SmallNamespace(), RandomTokens(rng, 2 * kS)).tail.has_value());
  const KeyChain empty = ChainKeys(SmallNamespace(), {});
  EXPECT_TRUE(empty.segments.empty());
  EXPECT_FALSE(empty.tail.has_value());
}

TEST(BlockKeyTest, AChainCanBeContinuedFromAnyOfItsKeys) {
  std::mt19937 rng(2);
  const std::vector<uint32_t> tokens = RandomTokens(rng, 4 * kS + 1);
  const KeyChain whole = ChainKeys(SmallNamespace(), tokens);
  const KeyChain rest = ChainKeys(whole.segments[1], kS, std::span(tokens).subspan(2 * kS));
  EXPECT_EQ(rest.segments, std::vector<BlockKey>(whole.segments.begin() + 2, whole.segments.end()));
  EXPECT_EQ(rest.tail, whole.tail);
}

}  // namespace
}  // namespace fourierkv
