// config.json of a Llama-architecture model.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compute/base/geometry.h"

namespace fourierkv {

// "llama3" frequency scaling; see rope.h.
struct Llama3RopeScaling {
  double factor = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  int64_t original_max_position_embeddings = 8192;
};

struct ModelConfig {
  int hidden_size = 0;
  int layers = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int intermediate_size = 0;
  int vocab_size = 0;
  int64_t max_position_embeddings = 0;
  double rope_theta = 10000;
  bool llama3_rope = false;
  Llama3RopeScaling rope_scaling;  // meaningless unless llama3_rope
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = false;
  std::vector<int> bos_token_ids;
  std::vector<int> eos_token_ids;

  KvGeometry Geometry() const { return {layers, kv_heads, head_dim}; }

  // `text` is the content of config.json. InvalidArgument, naming the field and what it may be, for
  // anything that LlamaModel would not compute exactly as its author meant: another architecture,
  // activation, biases, unknown kinds of RoPE scaling, sizes out of bounds.
  static absl::StatusOr<ModelConfig> FromJson(absl::string_view text);
  // Reads `folder`/config.json, of at most 1 MiB.
  static absl::StatusOr<ModelConfig> FromFolder(const std::string& folder);
};

}  // namespace fourierkv
