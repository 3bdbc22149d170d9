// The weights of a Llama-architecture model in device memory.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"
#include "compute/model/llama_model.h"
#include "compute/model/model_config.h"

namespace fourierkv {

// Matrices are bf16 [out][in], row-major; norms are float. What is read by one product stands
// together: q, k and v; gate and up.
struct DeviceLlamaLayer {
  const float* attention_norm = nullptr;  // [hidden]
  const uint16_t* qkv = nullptr;          // [(query_heads + 2 kv_heads) * head_dim][hidden]
  const uint16_t* o = nullptr;            // [hidden][query_heads * head_dim]
  const float* mlp_norm = nullptr;        // [hidden]
  const uint16_t* gate_up = nullptr;      // [2 * intermediate][hidden]
  const uint16_t* down = nullptr;         // [hidden][intermediate]
};

// Immutable and shared by all runners of the device that was current when it was made.
class DeviceLlamaModel {
 public:
  // Rounds to bf16, which changes nothing that was bf16 on disk. InvalidArgument, naming the field,
  // for sizes that the kernels cannot run; ResourceExhausted if the device has too little memory.
  static absl::StatusOr<std::shared_ptr<const DeviceLlamaModel>> Upload(const LlamaModel& model);

  // Random weights of small variance, for benchmarks. Errors as Upload.
  static absl::StatusOr<std::shared_ptr<const DeviceLlamaModel>> Random(const ModelConfig& config,
                                                                        uint64_t seed);

  const ModelConfig& config() const { return config_; }
  const uint16_t* embeddings() const { return embeddings_; }  // bf16 [vocab][hidden]
  const std::vector<DeviceLlamaLayer>& layers() const { return layers_; }
  const float* final_norm() const { return final_norm_; }  // [hidden]
  // bf16 [vocab][hidden]; the embeddings themselves if config().tie_word_embeddings.
  const uint16_t* output() const { return output_; }
  const double* rope_frequencies() const { return rope_frequencies_; }  // [head_dim / 2]
  int64_t bytes() const { return static_cast<int64_t>(memory_.size()); }
  // Whether rounding to bf16 has changed any weight.
  bool rounded() const { return rounded_; }

 private:
  explicit DeviceLlamaModel(const ModelConfig& config) : config_(config) {}
  // Memory for all weights, uninitialised, and the frequencies.
  static absl::StatusOr<std::unique_ptr<DeviceLlamaModel>> Allocate(const ModelConfig& config);

  const ModelConfig config_;
  DeviceBuffer memory_;
  bool rounded_ = false;
  const uint16_t* embeddings_ = nullptr;
  std::vector<DeviceLlamaLayer> layers_;
  const float* final_norm_ = nullptr;
  const uint16_t* output_ = nullptr;
  const double* rope_frequencies_ = nullptr;
};

}  // namespace fourierkv
