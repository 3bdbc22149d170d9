// Reads the weights of a Hugging Face model folder.

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compute/base/content_hash.h"
#include "compute/model/mapped_file.h"

namespace fourierkv {

enum class TensorType { kBf16, kF16, kF32 };

struct TensorView {
  std::string name;
  TensorType type = TensorType::kF32;
  std::vector<int64_t> shape;
  int64_t elements = 0;             // product of `shape`
  std::span<const std::byte> data;  // elements * size of type; not aligned

  // The values as float, exactly. `out` holds `elements`.
  void ToFloat(float* out) const;
};

// The tensors of `model.safetensors`, or of every shard that `model.safetensors.index.json` names.
// Files are mapped, not read; views live as long as the folder. Immutable.
class SafetensorsFolder {
 public:
  // NotFound if there is neither file; InvalidArgument, naming file, tensor and field, for files
  // that break the format or hold types other than BF16, F16 and F32; DataLoss for truncated ones.
  static absl::StatusOr<std::unique_ptr<SafetensorsFolder>> Open(const std::string& folder);

  // InvalidArgument, naming what is there, unless the tensor exists in exactly this shape.
  absl::StatusOr<TensorView> Get(const std::string& name, const std::vector<int64_t>& shape) const;
  const TensorView* Find(const std::string& name) const;  // null if there is none
  size_t size() const { return tensors_.size(); }

  // Adds to `hash` the header of every shard, in order of file name, and a 64-bit checksum of its
  // data, so that other weights give another digest. Reads every byte.
  void AddContent(Sha256& hash) const;

 private:
  struct Shard {
    std::unique_ptr<MappedFile> file;
    std::span<const std::byte> header;
    std::span<const std::byte> data;
  };

  absl::Status AddShard(const std::string& folder, const std::string& file_name);
  absl::Status AddIndexedShards(const std::string& folder, absl::string_view index_text,
                                const std::string& index_path);
  absl::Status AddTensors(const Shard& shard);

  std::map<std::string, Shard> shards_;  // by file name
  std::map<std::string, TensorView> tensors_;
};

}  // namespace fourierkv
