#include "kv_service/core/cache_namespace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "compute/codec/segment_layout.h"
#include "core_fixtures.h"

namespace fourierkv {
namespace {

using ::testing::HasSubstr;

struct BadNamespace {
  const char* field;
  std::function<void(CacheNamespace&)> spoil;
};

TEST(CacheNamespaceTest, ASmallOneIsValid) { EXPECT_TRUE(SmallNamespace().Validate().ok()); }

TEST(CacheNamespaceTest, SaltMayHoldAnyBytes) {
  CacheNamespace ns = SmallNamespace();
  ns.tenant_salt = std::string("\0\x01\xff", 3);
  EXPECT_TRUE(ns.Validate().ok());
}

TEST(CacheNamespaceTest, EveryBadFieldIsRefusedByName) {
  const std::string long_text(257, 'x');
  const BadNamespace cases[] = {
      {"tenant_salt", [&](CacheNamespace& ns) { ns.tenant_salt = long_text; }},
      {"model_id", [&](CacheNamespace& ns) { ns.model_id = ""; }},
      {"model_id", [&](CacheNamespace& ns) { ns.model_id = long_text; }},
      {"model_id", [&](CacheNamespace& ns) { ns.model_id = "a\nb"; }},
      {"model_revision", [&](CacheNamespace& ns) { ns.model_revision = ""; }},
      {"weight_dtype", [&](CacheNamespace& ns) { ns.weight_dtype = ""; }},
      {"weight_dtype", [&](CacheNamespace& ns) { ns.weight_dtype = "\x7f"; }},
      {"rope", [&](CacheNamespace& ns) { ns.rope = long_text; }},
      {"lora_id", [&](CacheNamespace& ns) { ns.lora_id = long_text; }},
      {"kv_dtype", [&](CacheNamespace& ns) { ns.kv_dtype = static_cast<KvDtype>(3); }},
      {"layers", [&](CacheNamespace& ns) { ns.geometry.layers = 0; }},
      {"head_dim", [&](CacheNamespace& ns) { ns.geometry.head_dim = 12; }},
      {"tp_size", [&](CacheNamespace& ns) { ns.tp_size = 0; }},
      {"tp_size", [&](CacheNamespace& ns) { ns.tp_size = 1025; }},
      {"tp_rank", [&](CacheNamespace& ns) { ns.tp_rank = -1; }},
      {"tp_rank", [&](CacheNamespace& ns) { ns.tp_rank = 1; }},
      {"profile_id", [&](CacheNamespace& ns) { ns.profile_id = Digest{}; }},
      {"segment_tokens", [&](CacheNamespace& ns) { ns.segment_tokens = 100; }},
      {"segment_tokens", [&](CacheNamespace& ns) { ns.segment_tokens = -128; }},
  };
  for (const BadNamespace& bad : cases) {
    CacheNamespace ns = SmallNamespace();
    bad.spoil(ns);
    const absl::Status status = ns.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.field;
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad.field));
    EXPECT_FALSE(MakeNamespaceContext(ns, nullptr).ok());
  }
}

TEST(NamespaceContextTest, TheLayoutMustBeThatOfTheProfile) {
  const auto good = SmallContext();
  const auto make = [&](std::function<void(CacheNamespace&)> spoil, bool with_layout = true) {
    CacheNamespace ns = good->ns;
    spoil(ns);
    return MakeNamespaceContext(ns, with_layout ? good->layout : nullptr).status();
  };
  EXPECT_TRUE(make([](CacheNamespace&) {}).ok());
  EXPECT_THAT(make([](CacheNamespace&) {}, false).ToString(), HasSubstr("profile_id"));
  EXPECT_THAT(make([](CacheNamespace& ns) { ns.profile_id.reset(); }).ToString(),
              HasSubstr("profile_id"));
  EXPECT_THAT(make([](CacheNamespace& ns) { ns.profile_id->bytes[0] ^= 1; }).ToString(),
              HasSubstr("profile_id"));
  EXPECT_EQ(make([](CacheNamespace& ns) { ns.geometry.layers = 3; }).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(make([](CacheNamespace& ns) { ns.segment_tokens = 256; }).ToString(),
              HasSubstr("segment_tokens"));
}

TEST(NamespaceContextTest, KnowsItsRoot) {
  EXPECT_EQ(SmallContext()->root, SmallContext()->ns.RootKey());
  EXPECT_NE(SmallContext(true)->root, SmallContext(false)->root);
}

}  // namespace
}  // namespace fourierkv
