// What prefill and decode workers have in common: a model, a codec profile, what computes them, and
// a connection to the KV service.

#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "clients/cpp/kv_client.h"
#include "compute/backend/compute_backend.h"
#include "compute/base/thread_pool.h"
#include "compute/cache/sequence_kv_cache.h"
#include "compute/codec/segment_layout.h"
#include "compute/model/llama_model.h"
#include "compute/model/model_engine.h"
#include "fourierkv/v1/prefill_service.pb.h"
#include "fourierkv/v1/types.pb.h"

namespace fourierkv {

struct WorkerOptions {
  std::string server;  // address of the KV service
  ChannelOptions channel;
  std::string model_dir;  // Hugging Face folder
  std::string model_id;   // empty: the folder's name
  std::string
      profile;  // a file, "default", or empty: the folder's codec_profile.json, else default
  std::string tenant_salt;
  std::string device = "cpu";
  int threads = 0;
  int recent_window = 1024;
  int64_t kv_memory = 0;  // bytes of the device's memory for KV caches; 0: as the engine thinks fit
  absl::Duration connect_timeout = absl::Seconds(30);
};

// Immutable after Create; thread safe.
class WorkerRuntime {
 public:
  // Loads the model, checks that the profile fits it, connects to the KV service and puts the
  // profile there. Errors name the flag or field at fault.
  static absl::StatusOr<std::unique_ptr<WorkerRuntime>> Create(const WorkerOptions& options);

  const std::shared_ptr<const LlamaModel>& model() const { return model_; }
  const std::shared_ptr<ThreadPool>& pool() const { return pool_; }
  ComputeBackend* backend() const { return backend_.get(); }
  ModelEngine& engine() const { return *engine_; }
  const std::shared_ptr<const ProfileLayout>& layout() const { return layout_; }
  KvClient& kv() const { return *kv_; }
  // Of the segments of both cache modes; of EXACT only if `sequence`.
  int segment_tokens() const { return static_cast<int>(exact_ns_.segment_tokens()); }
  // Whether caches of `mode` are whole sequences: COMPACT with a profile of such.
  bool sequence(v1::CacheMode mode) const {
    return mode == v1::CACHE_MODE_COMPACT && layout_->sequence() != nullptr;
  }
  // What a request asks for, or the worker's own if that is 0.
  int RecentWindow(uint32_t requested) const;

  // The namespace of a cache mode: without codec for EXACT.
  const v1::CacheNamespace& ns(v1::CacheMode mode) const;

  // Puts the profile again, in case the service has been restarted.
  absl::Status PutProfile() const;

  // A cache of a mode with `sequence`. Errors are those of SequenceKvCache.
  absl::StatusOr<std::unique_ptr<SequenceKvCache>> NewSequenceCache(int64_t capacity,
                                                                    int64_t prompt_tokens) const;

 private:
  WorkerRuntime() = default;

  std::shared_ptr<const LlamaModel> model_;
  std::shared_ptr<ThreadPool> pool_;
  std::unique_ptr<ComputeBackend> backend_;
  std::shared_ptr<const ProfileLayout> layout_;
  std::unique_ptr<ModelEngine> engine_;
  std::unique_ptr<KvClient> kv_;
  v1::CacheNamespace compact_ns_;
  v1::CacheNamespace exact_ns_;
  int recent_window_ = 0;
};

// The mode a request asks for; UNSPECIFIED means COMPACT. InvalidArgument for unknown values.
absl::StatusOr<v1::CacheMode> ParseCacheMode(v1::CacheMode mode);

// The largest relative error that a request allows; 0 in it means any. InvalidArgument for NaN and
// negative ones.
absl::StatusOr<float> ParseErrorBound(float bound);

// InvalidArgument unless a request may bound errors in that mode: what is compressed as one whole
// cannot be exact in parts.
absl::Status CheckErrorBound(const WorkerRuntime& runtime, v1::CacheMode mode, float bound);

// Where workers with these options, computing on the host, keep caches of that mode: without codec
// for EXACT.
v1::CacheNamespace NamespaceOf(const WorkerOptions& options, const LlamaModel& model,
                               const CodecProfile& profile, v1::CacheMode mode);

// A codec profile as flags name it: a file, "default", or empty for the folder's codec_profile.json
// or else the default. InvalidArgument if it does not fit the model.
absl::StatusOr<CodecProfile> LoadProfile(const std::string& flag, const std::string& model_dir,
                                         const KvGeometry& geometry);

}  // namespace fourierkv
