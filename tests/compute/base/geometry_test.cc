#include "compute/base/geometry.h"

#include <gtest/gtest.h>

#include <string>

namespace fourierkv {
namespace {

TEST(KvGeometry, CountsTheBytesOfLlama31At32kTokens) {
  const KvGeometry llama{.layers = 32, .kv_heads = 8, .head_dim = 128};
  EXPECT_TRUE(llama.Validate().ok());
  EXPECT_EQ(llama.PartBytes(1), 2048);
  EXPECT_EQ(llama.DenseBytes(1), 128 << 10);
  EXPECT_EQ(llama.DenseBytes(32768), int64_t{4} << 30);
}

TEST(KvGeometry, DoesNotOverflowAtItsBounds) {
  const KvGeometry largest{.layers = 512, .kv_heads = 256, .head_dim = 512};
  EXPECT_TRUE(largest.Validate().ok());
  EXPECT_EQ(largest.DenseBytes(int64_t{1} << 30), int64_t{1} << 58);
}

TEST(KvGeometry, NamesTheFieldThatIsOutOfBounds) {
  const struct {
    KvGeometry geometry;
    const char* field;
  } cases[] = {
      {{0, 8, 128}, "layers"},     {{513, 8, 128}, "layers"},    {{-1, 8, 128}, "layers"},
      {{32, 0, 128}, "kv_heads"},  {{32, 257, 128}, "kv_heads"}, {{32, 8, 0}, "head_dim"},
      {{32, 8, 520}, "head_dim"},  {{32, 8, 100}, "head_dim"},   {{32, 8, 4}, "head_dim"},
      {{32, 8, -128}, "head_dim"},
  };
  for (const auto& [geometry, field] : cases) {
    const absl::Status status = geometry.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(status.message()).find(field), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace fourierkv
