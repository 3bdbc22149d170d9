#include "compute/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/compute/model/temp_folder.h"

namespace fourierkv {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

json Smallest() {
  return json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 100,
    "max_position_embeddings": 512})");
}

absl::StatusOr<ModelConfig> Parse(const json& config) {
  return ModelConfig::FromJson(config.dump());
}

TEST(ModelConfig, FillsInWhatOlderFilesLeaveOut) {
  const auto config = Parse(Smallest());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->kv_heads, 4);
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->rope_theta, 10000);
  EXPECT_EQ(config->rms_norm_eps, 1e-6);
  EXPECT_FALSE(config->tie_word_embeddings);
  EXPECT_FALSE(config->llama3_rope);
  EXPECT_THAT(config->eos_token_ids, IsEmpty());
  EXPECT_EQ(config->Geometry(), (KvGeometry{2, 4, 16}));
}

TEST(ModelConfig, ReadsAllFields) {
  json c = Smallest();
  c.update(json::parse(R"({"num_key_value_heads": 2, "head_dim": 32, "rope_theta": 5e5,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "bos_token_id": 3,
    "eos_token_id": [4, 99], "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
    "rope_scaling": null, "torch_dtype": "bfloat16", "something_new": {"a": [1]}})"));
  const auto config = Parse(c);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->Geometry(), (KvGeometry{2, 2, 32}));
  EXPECT_EQ(config->rope_theta, 5e5);
  EXPECT_EQ(config->rms_norm_eps, 1e-5);
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_THAT(config->bos_token_ids, ElementsAre(3));
  EXPECT_THAT(config->eos_token_ids, ElementsAre(4, 99));
}

TEST(ModelConfig, ReadsLlama3RopeUnderEitherName) {
  const json rope = json::parse(R"({"factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192})");
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    for (const char* kind : {"rope_type", "type"}) {
      json c = Smallest();
      c[name] = rope;
      c[name][kind] = "llama3";
      c[name]["rope_theta"] = 123.0;
      const auto config = Parse(c);
      ASSERT_TRUE(config.ok()) << config.status();
      EXPECT_TRUE(config->llama3_rope);
      EXPECT_EQ(config->rope_scaling.factor, 8);
      EXPECT_EQ(config->rope_scaling.original_max_position_embeddings, 8192);
      EXPECT_EQ(config->rope_theta, 123);
    }
  }
}

TEST(ModelConfig, RefusesWhatItWouldComputeWrongly) {
  const auto expect_refused = [](const char* field, const json& value) {
    json c = Smallest();
    c[field] = value;
    const absl::Status status = Parse(c).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << field << " " << value << " " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
  };
  expect_refused("architectures", {"MistralForCausalLM"});
  expect_refused("architectures", {"LlamaForCausalLM", "Other"});
  expect_refused("architectures", nullptr);
  expect_refused("hidden_act", "gelu");
  expect_refused("attention_bias", true);
  expect_refused("mlp_bias", true);
  expect_refused("quantization_config", {{"bits", 4}});
  expect_refused("partial_rotary_factor", 0.5);
  for (const char* field : {"hidden_size", "num_hidden_layers", "num_attention_heads",
                            "intermediate_size", "vocab_size", "max_position_embeddings"}) {
    for (const json& value : {json(0), json(-1), json(1.5), json("4"), json(1e30), json(INT64_MAX),
                              json(UINT64_MAX), json(nullptr), json::array({1})}) {
      expect_refused(field, value);
    }
  }
  expect_refused("num_key_value_heads", 3);
  expect_refused("num_key_value_heads", 0);
  expect_refused("head_dim", 12);
  expect_refused("head_dim", 1024);
  expect_refused("rms_norm_eps", -1);
  expect_refused("rms_norm_eps", "x");
  expect_refused("rope_theta", 0);
  expect_refused("tie_word_embeddings", 1);
  expect_refused("eos_token_id", 100);
  expect_refused("eos_token_id", {1, -1});
  expect_refused("bos_token_id", "<s>");
  expect_refused("rope_scaling", 7);
  expect_refused("rope_scaling", {{"rope_type", "yarn"}, {"factor", 2}});
  expect_refused("rope_scaling", {{"rope_type", 3}});
  expect_refused("rope_scaling", {{"rope_type", "llama3"}, {"factor", 2}});
  expect_refused("rope_parameters", {{"rope_type", "llama3"},
                                     {"factor", 2},
                                     {"low_freq_factor", 4},
                                     {"high_freq_factor", 4},
                                     {"original_max_position_embeddings", 64}});
}

TEST(ModelConfig, RefusesWhatIsNotJson) {
  for (const char* text : {"", "{", "[]", "7", "{\"a\":1,\"a\":2}", "{\"a\":[[[[[[[[[[]]]]]]]]]]}",
                           "{\"hidden_size\": \xff}"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ModelConfig::FromJson(text).status())) << text;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(ModelConfig::FromJson(std::string(2 << 20, ' ')).status()));
}

TEST(ModelConfig, ErrorMessagesStayPrintable) {
  json c = Smallest();
  c["hidden_act"] = std::string(10000, '\x01');
  const absl::Status status = Parse(c).status();
  EXPECT_LT(status.message().size(), 400);
}

TEST(ModelConfig, ReadsFolders) {
  const auto config = ModelConfig::FromFolder(FOURIERKV_TEST_DATA "/needle-4m");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->Geometry(), (KvGeometry{6, 2, 64}));
  const TempFolder empty;
  EXPECT_TRUE(absl::IsNotFound(ModelConfig::FromFolder(empty.path()).status()));
}

}  // namespace
}  // namespace fourierkv
