// The weights of a Llama-architecture model.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/base/content_hash.h"
#include "compute/model/model_config.h"
#include "compute/model/rope.h"

namespace fourierkv {

// Matrices are [out][in], row-major, as stored by Hugging Face.
struct LlamaLayer {
  std::vector<float> attention_norm;  // [hidden]
  std::vector<float> q, k, v;         // [heads * head_dim][hidden]
  std::vector<float> o;               // [hidden][query_heads * head_dim]
  std::vector<float> mlp_norm;        // [hidden]
  std::vector<float> gate, up;        // [intermediate][hidden]
  std::vector<float> down;            // [hidden][intermediate]
};

// Immutable and shared by all sequences. Weights are converted to float when loaded: four bytes per
// parameter in memory, whatever the files hold.
class LlamaModel {
 public:
  // `folder` holds config.json and safetensors. Errors as ModelConfig::FromFolder and
  // SafetensorsFolder::Open; InvalidArgument for weights that config.json does not call for.
  static absl::StatusOr<std::shared_ptr<const LlamaModel>> Load(const std::string& folder);

  const ModelConfig& config() const { return config_; }
  // Digest of config.json and all weights: what tells two revisions of a model apart.
  const Digest& revision() const { return revision_; }

  const Rope& rope() const { return rope_; }
  const std::vector<float>& embeddings() const { return embeddings_; }  // [vocab][hidden]
  const std::vector<LlamaLayer>& layers() const { return layers_; }
  const std::vector<float>& final_norm() const { return final_norm_; }  // [hidden]
  // [vocab][hidden]; the embeddings themselves if config().tie_word_embeddings.
  const std::vector<float>& output() const {
    return config_.tie_word_embeddings ? embeddings_ : output_;
  }

 private:
  explicit LlamaModel(const ModelConfig& config) : config_(config), rope_(config) {}

  const ModelConfig config_;
  const Rope rope_;
  Digest revision_;
  std::vector<float> embeddings_;
  std::vector<LlamaLayer> layers_;
  std::vector<float> final_norm_;
  std::vector<float> output_;
};

}  // namespace fourierkv
