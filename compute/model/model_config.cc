#include "compute/model/model_config.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "compute/model/bounded_json.h"
#include "compute/model/mapped_file.h"

namespace fourierkv {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = size_t{1} << 20;
constexpr int kMaxDepth = 8;

// Reads members of one object; the first failure stands, and later calls do nothing.
class Fields {
 public:
  Fields(const json& object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {}

  const absl::Status& status() const { return status_; }

  // A missing or null member leaves `out` alone if it is optional.
  template <typename Int>
  void Integer(const char* name, int64_t low, int64_t high, bool required, Int* out) {
    const json* value = Find(name, required);
    if (value == nullptr) return;
    const bool in_range = value->is_number_integer() && !IsHuge(*value) &&
                          value->get<int64_t>() >= low && value->get<int64_t>() <= high;
    if (!in_range) {
      return Fail(name, absl::StrCat("must be an integer from ", low, " to ", high), *value);
    }
    *out = static_cast<Int>(value->get<int64_t>());
  }

  void Number(const char* name, double low, double high, bool required, double* out) {
    const json* value = Find(name, required);
    if (value == nullptr) return;
    const double number = value->is_number() ? value->get<double>() : NAN;
    if (!(number >= low && number <= high)) {
      return Fail(name, absl::StrCat("must be a number from ", low, " to ", high), *value);
    }
    *out = number;
  }

  void Bool(const char* name, bool* out) {
    const json* value = Find(name, /*required=*/false);
    if (value == nullptr) return;
    if (!value->is_boolean()) return Fail(name, "must be true or false", *value);
    *out = value->get<bool>();
  }

  // A member that may only be absent or `expected`.
  void MustBe(const char* name, const json& expected) {
    const json* value = Find(name, /*required=*/false);
    if (value != nullptr && *value != expected) {
      Fail(name, absl::StrCat("must be ", expected.dump(), "; nothing else is supported"), *value);
    }
  }

  void TokenIds(const char* name, int vocab_size, std::vector<int>* out) {
    const json* value = Find(name, /*required=*/false);
    if (value == nullptr) return;
    const json list = value->is_array() ? *value : json::array({*value});
    for (const json& id : list) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab_size)) {
        return Fail(name, "must be one token id below vocab_size, or a list of them", *value);
      }
      out->push_back(id.get<int>());
    }
  }

  void Fail(const char* name, absl::string_view problem, const json& value) {
    if (!status_.ok()) return;
    const std::string found =
        value.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace);
    status_ = absl::InvalidArgumentError(
        absl::StrCat("config.json: ", prefix_, name, " is ", ForMessage(found), "; it ", problem));
  }

 private:
  static bool IsHuge(const json& value) {
    return value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  }

  const json* Find(const char* name, bool required) {
    if (!status_.ok()) return nullptr;
    const auto it = object_.find(name);
    if (it != object_.end() && !it->is_null()) return &*it;
    if (required) {
      status_ =
          absl::InvalidArgumentError(absl::StrCat("config.json: ", prefix_, name, " is missing"));
    }
    return nullptr;
  }

  const json& object_;
  const std::string prefix_;
  absl::Status status_;
};

absl::Status CheckArchitecture(const json& root) {
  const auto list = root.find("architectures");
  const bool is_llama = list != root.end() && list->is_array() && list->size() == 1 &&
                        list->front() == "LlamaForCausalLM";
  if (is_llama) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "config.json: architectures must be [\"LlamaForCausalLM\"]; no other one is supported");
}

// rope_scaling (older files) and rope_parameters (newer ones, with rope_theta inside) say the same.
absl::Status ReadRope(const json& root, const char* name, ModelConfig* config) {
  const auto it = root.find(name);
  if (it == root.end() || it->is_null()) return absl::OkStatus();
  if (!it->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: ", name, " must be an object"));
  }
  Fields rope(*it, absl::StrCat(name, "."));
  rope.Number("rope_theta", 1, 1e12, /*required=*/false, &config->rope_theta);
  if (!rope.status().ok()) return rope.status();
  const auto kind = it->contains("rope_type") ? it->find("rope_type") : it->find("type");
  if (kind == it->end() || *kind == "default") return absl::OkStatus();
  if (*kind != "llama3") {
    rope.Fail("rope_type", "must be \"default\" or \"llama3\"", *kind);
    return rope.status();
  }
  config->llama3_rope = true;
  Llama3RopeScaling& scaling = config->rope_scaling;
  rope.Number("factor", 1, 1e6, /*required=*/true, &scaling.factor);
  rope.Number("low_freq_factor", 1e-3, 1e6, /*required=*/true, &scaling.low_freq_factor);
  rope.Number("high_freq_factor", 1e-3, 1e6, /*required=*/true, &scaling.high_freq_factor);
  rope.Integer("original_max_position_embeddings", 1, int64_t{1} << 24, /*required=*/true,
               &scaling.original_max_position_embeddings);
  if (rope.status().ok() && !(scaling.low_freq_factor < scaling.high_freq_factor)) {
    rope.Fail("high_freq_factor", "must be greater than low_freq_factor",
              it->at("high_freq_factor"));
  }
  return rope.status();
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfig::FromJson(absl::string_view text) {
  if (text.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json has ", text.size(), " bytes; at most ", kMaxConfigBytes));
  }
  absl::StatusOr<json> parsed = ParseBoundedJson(text, "config.json", kMaxDepth);
  if (!parsed.ok()) return parsed.status();
  const json& root = *parsed;
  if (absl::Status s = CheckArchitecture(root); !s.ok()) return s;

  ModelConfig c;
  Fields fields(root, "");
  fields.Integer("hidden_size", 1, 1 << 16, true, &c.hidden_size);
  fields.Integer("num_hidden_layers", 1, 512, true, &c.layers);
  fields.Integer("num_attention_heads", 1, 1024, true, &c.query_heads);
  c.kv_heads = c.query_heads;
  fields.Integer("num_key_value_heads", 1, 256, false, &c.kv_heads);
  c.head_dim = c.query_heads > 0 ? c.hidden_size / c.query_heads : 0;
  fields.Integer("head_dim", 8, 512, false, &c.head_dim);
  fields.Integer("intermediate_size", 1, 1 << 20, true, &c.intermediate_size);
  fields.Integer("vocab_size", 1, 1 << 22, true, &c.vocab_size);
  fields.Integer("max_position_embeddings", 1, int64_t{1} << 24, true, &c.max_position_embeddings);
  fields.Number("rope_theta", 1, 1e12, false, &c.rope_theta);
  fields.Number("rms_norm_eps", 0, 0.1, false, &c.rms_norm_eps);
  fields.Bool("tie_word_embeddings", &c.tie_word_embeddings);
  fields.MustBe("hidden_act", "silu");
  fields.MustBe("attention_bias", false);
  fields.MustBe("mlp_bias", false);
  fields.MustBe("pretraining_tp", 1);
  fields.MustBe("partial_rotary_factor", 1);
  fields.MustBe("quantization_config", nullptr);
  if (fields.status().ok()) {
    fields.TokenIds("bos_token_id", c.vocab_size, &c.bos_token_ids);
    fields.TokenIds("eos_token_id", c.vocab_size, &c.eos_token_ids);
  }
  if (!fields.status().ok()) return fields.status();

  if (absl::Status s = ReadRope(root, "rope_scaling", &c); !s.ok()) return s;
  if (absl::Status s = ReadRope(root, "rope_parameters", &c); !s.ok()) return s;
  if (c.query_heads % c.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: num_attention_heads (", c.query_heads,
                     ") must be a multiple of num_key_value_heads (", c.kv_heads, ")"));
  }
  if (absl::Status s = c.Geometry().Validate(); !s.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: ", s.message()));
  }
  return c;
}

absl::StatusOr<ModelConfig> ModelConfig::FromFolder(const std::string& folder) {
  auto file = MappedFile::Open(absl::StrCat(folder, "/config.json"), kMaxConfigBytes);
  if (!file.ok()) return file.status();
  return FromJson((*file)->text());
}

}  // namespace fourierkv
