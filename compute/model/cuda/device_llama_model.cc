#include "compute/model/cuda/device_llama_model.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/base/bfloat16.h"
#include "kernels/random_fill.h"

namespace fourierkv {
namespace {

constexpr float kRandomDeviation = 0.02f;  // as models are initialised for training

// Places arrays one behind the other in memory that starts at `base`, or counts if that is null.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  template <typename T>
  const T* Take(int64_t count) {
    const size_t offset = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return base_ == nullptr ? nullptr : reinterpret_cast<const T*>(base_ + offset);
  }
  size_t used() const { return used_; }

 private:
  static constexpr size_t kAlignment = 256;

  std::byte* const base_;
  size_t used_ = 0;
};

struct Sizes {
  explicit Sizes(const ModelConfig& c)
      : hidden(c.hidden_size),
        inner(c.intermediate_size),
        q(int64_t{c.query_heads} * c.head_dim),
        kv(int64_t{c.kv_heads} * c.head_dim),
        vocab(c.vocab_size) {}
  int64_t hidden, inner, q, kv, vocab;
};

absl::Status CheckSizes(const ModelConfig& c) {
  const std::pair<const char*, int> sizes[] = {{"hidden_size", c.hidden_size},
                                               {"intermediate_size", c.intermediate_size},
                                               {"head_dim", c.head_dim}};
  for (const auto& [name, size] : sizes) {
    if (size % 8 == 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is ", size, "; on a GPU it must be a multiple of 8: use the CPU"));
  }
  return absl::OkStatus();
}

absl::Status CopyFloats(std::span<const float> from, const float* to) {
  return CudaStatus(
      cudaMemcpy(const_cast<float*>(to), from.data(), from.size_bytes(), cudaMemcpyHostToDevice),
      "copying weights to the device");
}

// Copies matrices that stand together on the device, one behind the other.
class MatrixCopier {
 public:
  absl::Status Copy(std::initializer_list<const std::vector<float>*> from, const uint16_t* to) {
    rounded_.clear();
    for (const std::vector<float>* matrix : from) {
      const size_t first = rounded_.size();
      rounded_.resize(first + matrix->size());
      std::transform(matrix->begin(), matrix->end(), rounded_.begin() + first, FloatToBf16);
      changed_ = changed_ || !std::equal(matrix->begin(), matrix->end(), rounded_.begin() + first,
                                         [](float a, uint16_t b) { return a == Bf16ToFloat(b); });
    }
    return CudaStatus(cudaMemcpy(const_cast<uint16_t*>(to), rounded_.data(),
                                 rounded_.size() * sizeof(uint16_t), cudaMemcpyHostToDevice),
                      "copying weights to the device");
  }
  // Whether any of them had to be rounded.
  bool changed() const { return changed_; }

 private:
  std::vector<uint16_t> rounded_;
  bool changed_ = false;
};

absl::Status CopyLayer(const LlamaLayer& from, const DeviceLlamaLayer& to, MatrixCopier* copier) {
  if (absl::Status s = CopyFloats(from.attention_norm, to.attention_norm); !s.ok()) return s;
  if (absl::Status s = CopyFloats(from.mlp_norm, to.mlp_norm); !s.ok()) return s;
  if (absl::Status s = copier->Copy({&from.q, &from.k, &from.v}, to.qkv); !s.ok()) return s;
  if (absl::Status s = copier->Copy({&from.o}, to.o); !s.ok()) return s;
  if (absl::Status s = copier->Copy({&from.gate, &from.up}, to.gate_up); !s.ok()) return s;
  return copier->Copy({&from.down}, to.down);
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceLlamaModel>> DeviceLlamaModel::Allocate(
    const ModelConfig& config) {
  if (absl::Status s = CheckSizes(config); !s.ok()) return s;
  std::unique_ptr<DeviceLlamaModel> model(new DeviceLlamaModel(config));
  const Sizes n(config);
  model->layers_.resize(config.layers);
  const auto place = [&](Arena arena) {
    model->rope_frequencies_ = arena.Take<double>(config.head_dim / 2);
    model->embeddings_ = arena.Take<uint16_t>(n.vocab * n.hidden);
    for (DeviceLlamaLayer& layer : model->layers_) {
      layer.attention_norm = arena.Take<float>(n.hidden);
      layer.qkv = arena.Take<uint16_t>((n.q + 2 * n.kv) * n.hidden);
      layer.o = arena.Take<uint16_t>(n.hidden * n.q);
      layer.mlp_norm = arena.Take<float>(n.hidden);
      layer.gate_up = arena.Take<uint16_t>(2 * n.inner * n.hidden);
      layer.down = arena.Take<uint16_t>(n.hidden * n.inner);
    }
    model->final_norm_ = arena.Take<float>(n.hidden);
    model->output_ =
        config.tie_word_embeddings ? model->embeddings_ : arena.Take<uint16_t>(n.vocab * n.hidden);
    return arena.used();
  };
  absl::StatusOr<DeviceBuffer> memory = DeviceBuffer::Create(place(Arena(nullptr)));
  if (!memory.ok()) {
    return absl::Status(memory.status().code(),
                        absl::StrCat("weights: ", absl::string_view(memory.status().message())));
  }
  place(Arena(memory->data()));
  model->memory_ = *std::move(memory);
  const Rope rope(config);
  const std::vector<double>& frequencies = rope.frequencies();
  absl::Status s =
      CudaStatus(cudaMemcpy(const_cast<double*>(model->rope_frequencies_), frequencies.data(),
                            frequencies.size() * sizeof(double), cudaMemcpyHostToDevice),
                 "copying weights to the device");
  if (!s.ok()) return s;
  return model;
}

absl::StatusOr<std::shared_ptr<const DeviceLlamaModel>> DeviceLlamaModel::Upload(
    const LlamaModel& model) {
  auto device = Allocate(model.config());
  if (!device.ok()) return device.status();
  const DeviceLlamaModel& to = **device;
  MatrixCopier copier;
  absl::Status s = copier.Copy({&model.embeddings()}, to.embeddings_);
  for (int l = 0; s.ok() && l < model.config().layers; ++l) {
    s = CopyLayer(model.layers()[l], to.layers_[l], &copier);
  }
  if (s.ok()) s = CopyFloats(model.final_norm(), to.final_norm_);
  if (s.ok() && to.output_ != to.embeddings_) s = copier.Copy({&model.output()}, to.output_);
  if (!s.ok()) return s;
  (*device)->rounded_ = copier.changed();
  return *std::move(device);
}

absl::StatusOr<std::shared_ptr<const DeviceLlamaModel>> DeviceLlamaModel::Random(
    const ModelConfig& config, uint64_t seed) {
  auto device = Allocate(config);
  if (!device.ok()) return device.status();
  const DeviceLlamaModel& to = **device;
  const Sizes n(config);
  absl::Status s;
  const auto fill = [&](const uint16_t* matrix, int64_t count) {
    if (!s.ok()) return;
    s = CudaStatus(kernels::LaunchFillRandom(const_cast<uint16_t*>(matrix), count, kRandomDeviation,
                                             ++seed, nullptr),
                   "filling weights");
  };
  const std::vector<float> ones(n.hidden, 1.0f);
  fill(to.embeddings_, n.vocab * n.hidden);
  for (const DeviceLlamaLayer& layer : to.layers_) {
    fill(layer.qkv, (n.q + 2 * n.kv) * n.hidden);
    fill(layer.o, n.hidden * n.q);
    fill(layer.gate_up, 2 * n.inner * n.hidden);
    fill(layer.down, n.hidden * n.inner);
    if (s.ok()) s = CopyFloats(ones, layer.attention_norm);
    if (s.ok()) s = CopyFloats(ones, layer.mlp_norm);
  }
  if (s.ok()) s = CopyFloats(ones, to.final_norm_);
  if (to.output_ != to.embeddings_) fill(to.output_, n.vocab * n.hidden);
  if (s.ok()) s = CudaStatus(cudaDeviceSynchronize(), "filling weights");
  if (!s.ok()) return s;
  return *std::move(device);
}

}  // namespace fourierkv
