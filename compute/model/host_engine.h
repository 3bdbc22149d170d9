// The engine of the host: matrix products on its processor, attention and codec on any backend,
// caches in its memory.

#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "compute/cache/fillable_kv_cache.h"
#include "compute/cache/sequence_kv_cache.h"
#include "compute/model/engine_registry.h"
#include "compute/model/model_engine.h"

namespace fourierkv {

// The model starts on a layer as soon as that is filled, and hands out the parts of a layer before
// it goes on to the next.
class HostEngine final : public ModelEngine {
 public:
  explicit HostEngine(const EngineOptions& options) : options_(options) {}

  const char* name() const override { return "host"; }
  // The service's backend is as fast, and need not be asked by this host.
  bool encodes_cheaply() const override { return false; }
  const char* weight_dtype() const override { return "fp32"; }  // whatever the files hold
  absl::StatusOr<std::unique_ptr<ModelSequence>> NewSequence(
      const SequenceOptions& options) override;

  // The cache of such a sequence, on its own.
  absl::StatusOr<std::unique_ptr<FillableKvCache>> NewCache(const SequenceOptions& options) const;

 private:
  const EngineOptions options_;
};

// A sequence over a cache that is compressed as a whole.
std::unique_ptr<ModelSequence> NewWholeSequence(std::shared_ptr<const LlamaModel> model,
                                                std::shared_ptr<ThreadPool> pool,
                                                std::unique_ptr<SequenceKvCache> cache);

}  // namespace fourierkv
