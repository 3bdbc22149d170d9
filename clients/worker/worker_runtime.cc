#include "clients/worker/worker_runtime.h"

#include <cmath>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "compute/base/structured_log.h"
#include "compute/model/engine_registry.h"
#include "proto/support/convert.h"

namespace fourierkv {
namespace {

constexpr absl::Duration kProfileTimeout = absl::Seconds(30);
constexpr int kExactSegmentTokens = 256;  // where the profile has no segments

std::string RopeText(const ModelConfig& config) {
  if (!config.llama3_rope) return absl::StrFormat("default;theta=%.17g", config.rope_theta);
  const Llama3RopeScaling& s = config.rope_scaling;
  return absl::StrFormat("llama3;theta=%.17g;factor=%.17g;low=%.17g;high=%.17g;original=%d",
                         config.rope_theta, s.factor, s.low_freq_factor, s.high_freq_factor,
                         s.original_max_position_embeddings);
}

}  // namespace

v1::CacheNamespace NamespaceOf(const WorkerOptions& options, const LlamaModel& model,
                               const CodecProfile& profile, v1::CacheMode mode) {
  std::filesystem::path folder = std::filesystem::path(options.model_dir).lexically_normal();
  if (folder.filename().empty()) folder = folder.parent_path();
  v1::CacheNamespace ns;
  ns.set_tenant_salt(options.tenant_salt);
  ns.set_model_id(options.model_id.empty() ? folder.filename().string() : options.model_id);
  ns.set_model_revision(model.revision().ToHex());
  ns.set_weight_dtype("fp32");  // of the host's engine
  ns.set_kv_dtype(DtypeName(kEngineKvDtype));
  ns.set_layers(profile.geometry.layers);
  ns.set_kv_heads(profile.geometry.kv_heads);
  ns.set_head_dim(profile.geometry.head_dim);
  ns.set_rope(RopeText(model.config()));
  ns.set_tp_size(1);
  ns.set_segment_tokens(profile.sequence ? kExactSegmentTokens : profile.segment_tokens);
  if (mode == v1::CACHE_MODE_EXACT) return ns;
  ns.set_profile_id(profile.Id().ToString());
  ns.set_segment_tokens(profile.segment_tokens);
  return ns;
}

absl::StatusOr<float> ParseErrorBound(float bound) {
  if (!(bound >= 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_relative_error is ", bound,
                     "; it must be a number of at least 0, where 0 means no bound"));
  }
  return bound == 0 ? std::numeric_limits<float>::infinity() : bound;
}

absl::Status CheckErrorBound(const WorkerRuntime& runtime, v1::CacheMode mode, float bound) {
  if (std::isinf(bound) || !runtime.sequence(mode)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "max_relative_error is ", bound, ", but the worker's codec profile '",
      runtime.layout()->profile().name,
      "' compresses each sequence as a whole: leave the bound out, or use cache_mode EXACT"));
}

absl::StatusOr<v1::CacheMode> ParseCacheMode(v1::CacheMode mode) {
  switch (mode) {
    case v1::CACHE_MODE_UNSPECIFIED:
    case v1::CACHE_MODE_COMPACT:
      return v1::CACHE_MODE_COMPACT;
    case v1::CACHE_MODE_EXACT:
      return v1::CACHE_MODE_EXACT;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("cache_mode is ", static_cast<int>(mode), "; it must be COMPACT or EXACT"));
  }
}

absl::StatusOr<CodecProfile> LoadProfile(const std::string& flag, const std::string& model_dir,
                                         const KvGeometry& geometry) {
  if (flag == "default") return DefaultProfile(geometry);
  std::string path = flag;
  if (path.empty()) {
    path = (std::filesystem::path(model_dir) / "codec_profile.json").string();
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) return DefaultProfile(geometry);
  }
  absl::StatusOr<CodecProfile> profile = CodecProfile::FromFile(path);
  if (!profile.ok()) return profile.status();
  if (absl::Status s = profile->CheckFits(geometry); !s.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", absl::string_view(s.message())));
  }
  return profile;
}

absl::StatusOr<std::unique_ptr<WorkerRuntime>> WorkerRuntime::Create(const WorkerOptions& options) {
  std::unique_ptr<WorkerRuntime> runtime(new WorkerRuntime());
  runtime->recent_window_ = options.recent_window;
  absl::StatusOr<std::unique_ptr<ComputeBackend>> backend =
      CreateBackend(options.device, options.threads);
  if (!backend.ok()) return backend.status();
  runtime->backend_ = *std::move(backend);
  runtime->pool_ = std::make_shared<ThreadPool>(options.threads);

  const absl::Time begun = absl::Now();
  absl::StatusOr<std::shared_ptr<const LlamaModel>> model = LlamaModel::Load(options.model_dir);
  if (!model.ok()) return model.status();
  runtime->model_ = *std::move(model);
  const KvGeometry geometry = runtime->model_->config().Geometry();
  absl::StatusOr<CodecProfile> profile = LoadProfile(options.profile, options.model_dir, geometry);
  if (!profile.ok()) return profile.status();
  runtime->layout_ = std::make_shared<const ProfileLayout>(*profile);
  runtime->exact_ns_ = NamespaceOf(options, *runtime->model_, *profile, v1::CACHE_MODE_EXACT);
  runtime->compact_ns_ = NamespaceOf(options, *runtime->model_, *profile, v1::CACHE_MODE_COMPACT);
  absl::StatusOr<std::unique_ptr<ModelEngine>> engine =
      CreateEngine(options.device, {.model = runtime->model_,
                                    .layout = runtime->layout_,
                                    .backend = runtime->backend_.get(),
                                    .pool = runtime->pool_,
                                    .segment_tokens = runtime->segment_tokens(),
                                    .kv_memory = options.kv_memory});
  if (!engine.ok()) return engine.status();
  runtime->engine_ = *std::move(engine);
  runtime->exact_ns_.set_weight_dtype(runtime->engine_->weight_dtype());
  runtime->compact_ns_.set_weight_dtype(runtime->engine_->weight_dtype());

  absl::StatusOr<std::unique_ptr<KvClient>> kv =
      KvClient::Connect(options.server, options.connect_timeout, options.channel);
  if (!kv.ok()) {
    return absl::Status(kv.status().code(),
                        absl::StrCat("--server: ", absl::string_view(kv.status().message())));
  }
  runtime->kv_ = *std::move(kv);
  if (absl::Status s = runtime->PutProfile(); !s.ok()) return s;
  Log(LogLevel::kInfo, "worker.ready",
      {{"model", runtime->exact_ns_.model_id()},
       {"revision", runtime->exact_ns_.model_revision()},
       {"profile", profile->name},
       {"profile_id", runtime->layout_->id().ToHex()},
       {"bits_per_element", runtime->layout_->BitsPerElement()},
       {"backend", runtime->backend_->name()},
       {"engine", runtime->engine_->name()},
       {"server", options.server},
       {"load_ms", absl::ToDoubleMilliseconds(absl::Now() - begun)}});
  return runtime;
}

int WorkerRuntime::RecentWindow(uint32_t requested) const {
  if (requested == 0) return recent_window_;
  return static_cast<int>(std::min<uint32_t>(requested, 1u << 20));
}

const v1::CacheNamespace& WorkerRuntime::ns(v1::CacheMode mode) const {
  return mode == v1::CACHE_MODE_EXACT ? exact_ns_ : compact_ns_;
}

absl::Status WorkerRuntime::PutProfile() const {
  return kv_->PutProfile(layout_->profile(), absl::Now() + kProfileTimeout).status();
}

absl::StatusOr<std::unique_ptr<SequenceKvCache>> WorkerRuntime::NewSequenceCache(
    int64_t capacity, int64_t prompt_tokens) const {
  return SequenceKvCache::Create(
      layout_->sequence(), backend_.get(), pool_,
      {.capacity = capacity, .prompt_tokens = prompt_tokens, .dtype = kEngineKvDtype});
}

}  // namespace fourierkv
