// Which engines are linked into this program.

#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compute/backend/compute_backend.h"
#include "compute/base/thread_pool.h"
#include "compute/codec/segment_layout.h"
#include "compute/model/llama_model.h"
#include "compute/model/model_engine.h"

namespace fourierkv {

struct EngineOptions {
  std::shared_ptr<const LlamaModel> model;
  std::shared_ptr<const ProfileLayout> layout;  // of a profile that fits the model
  ComputeBackend* backend = nullptr;            // must outlive the engine
  std::shared_ptr<ThreadPool> pool;
  int segment_tokens = 0;  // of exact sequences too; the profile's, unless that spans sequences
  // Bytes of device memory for KV caches; 0: as the engine thinks fit. Engines of the host take
  // memory as they need it.
  int64_t kv_memory = 0;
};

// Unimplemented if the engine cannot run this model or profile.
using EngineFactory = absl::StatusOr<std::unique_ptr<ModelEngine>> (*)(const EngineOptions&);

// A file-level constant of this type in an engine's source file registers the engine of a device.
// Such files live in CMake OBJECT libraries, which linkers keep whole: linking one is enough.
class EngineRegistration {
 public:
  // `device` must be unique and outlive the program (a literal).
  EngineRegistration(const char* device, EngineFactory factory);
};

// The engine of `device`. Where there is none, or where it cannot run what it is given (which is
// logged), the one that computes on the host, with attention and codec on the backend.
absl::StatusOr<std::unique_ptr<ModelEngine>> CreateEngine(absl::string_view device,
                                                          const EngineOptions& options);

}  // namespace fourierkv
