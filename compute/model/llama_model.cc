#include "compute/model/llama_model.h"

#include "absl/strings/str_cat.h"
#include "compute/model/mapped_file.h"
#include "compute/model/safetensors.h"

namespace fourierkv {
namespace {

// Converts tensors one after the other; the first failure stands.
class WeightLoader {
 public:
  explicit WeightLoader(const SafetensorsFolder& weights) : weights_(weights) {}

  void Load(const std::string& name, const std::vector<int64_t>& shape, std::vector<float>* out) {
    if (!status_.ok()) return;
    absl::StatusOr<TensorView> tensor = weights_.Get(name, shape);
    if (!tensor.ok()) {
      status_ = tensor.status();
      return;
    }
    out->resize(tensor->elements);
    tensor->ToFloat(out->data());
  }

  const absl::Status& status() const { return status_; }

 private:
  const SafetensorsFolder& weights_;
  absl::Status status_;
};

void LoadLayer(WeightLoader& loader, const ModelConfig& c, int index, LlamaLayer* layer) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const auto load = [&](const char* name, const std::vector<int64_t>& shape,
                        std::vector<float>* out) {
    loader.Load(absl::StrCat(prefix, name, ".weight"), shape, out);
  };
  const int64_t hidden = c.hidden_size, inner = c.intermediate_size;
  const int64_t q_size = int64_t{c.query_heads} * c.head_dim;
  const int64_t kv_size = int64_t{c.kv_heads} * c.head_dim;
  load("input_layernorm", {hidden}, &layer->attention_norm);
  load("self_attn.q_proj", {q_size, hidden}, &layer->q);
  load("self_attn.k_proj", {kv_size, hidden}, &layer->k);
  load("self_attn.v_proj", {kv_size, hidden}, &layer->v);
  load("self_attn.o_proj", {hidden, q_size}, &layer->o);
  load("post_attention_layernorm", {hidden}, &layer->mlp_norm);
  load("mlp.gate_proj", {inner, hidden}, &layer->gate);
  load("mlp.up_proj", {inner, hidden}, &layer->up);
  load("mlp.down_proj", {hidden, inner}, &layer->down);
}

}  // namespace

absl::StatusOr<std::shared_ptr<const LlamaModel>> LlamaModel::Load(const std::string& folder) {
  auto config_file = MappedFile::Open(absl::StrCat(folder, "/config.json"), size_t{1} << 20);
  if (!config_file.ok()) return config_file.status();
  absl::StatusOr<ModelConfig> config = ModelConfig::FromJson((*config_file)->text());
  if (!config.ok()) return config.status();
  auto weights = SafetensorsFolder::Open(folder);
  if (!weights.ok()) return weights.status();

  const ModelConfig& c = *config;
  const int64_t hidden = c.hidden_size, vocab = c.vocab_size;
  std::shared_ptr<LlamaModel> model(new LlamaModel(c));
  WeightLoader loader(**weights);
  loader.Load("model.embed_tokens.weight", {vocab, hidden}, &model->embeddings_);
  model->layers_.resize(c.layers);
  for (int l = 0; l < c.layers; ++l) LoadLayer(loader, c, l, &model->layers_[l]);
  loader.Load("model.norm.weight", {hidden}, &model->final_norm_);
  if (!c.tie_word_embeddings) loader.Load("lm_head.weight", {vocab, hidden}, &model->output_);
  if (!loader.status().ok()) {
    return absl::Status(loader.status().code(),
                        absl::StrCat(folder, ": ", loader.status().message()));
  }
  Sha256 revision;
  revision.AddString("fourierkv-model/1").AddString((*config_file)->text());
  (*weights)->AddContent(revision);
  model->revision_ = revision.Finish();
  return model;
}

}  // namespace fourierkv
