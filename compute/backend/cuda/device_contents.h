// Copies of caches' blocks in device memory, so that attention uploads only what is new.

#pragma once

#include <cuda_runtime_api.h>

#include <compare>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/compute_backend.h"
#include "compute/backend/cuda/staged_copy.h"
#include "compute/base/lru_map.h"
#include "kernels/fourier_attention.h"

namespace fourierkv::cuda {

// Finds blocks by their version and addresses (see ExactBlock); blocks without a version are copied
// at every call. Exact blocks are kept in pages of kernels::kPageTokens tokens, so that appended
// tokens are copied alone. What is given stays valid until the next BeginCall. One thread.
class DeviceContents {
 public:
  // Copies run on `upload`, which must outlive this. `most_bytes`: what is kept between calls.
  DeviceContents(StagedUpload* upload, int64_t most_bytes)
      : upload_(*upload), most_bytes_(most_bytes) {}

  // Forgets what was used longest ago beyond most_bytes, and what had no version. Nothing may be
  // running that uses it.
  void BeginCall();
  // Forgets everything and gives the memory back, as BeginCall.
  void Clear();

  // Both: ResourceExhausted with the bytes, or what the runtime reports. Copies are enqueued.
  absl::StatusOr<kernels::SegmentRef> Segment(const LayerKv& kv, const CompactBlock& block);
  // Appends the pages of `block`, which hold its heads PageHeadStride() elements apart.
  absl::Status AddPages(const LayerKv& kv, const ExactBlock& block,
                        std::vector<kernels::PageRef>* pages);

  static int64_t PageHeadStride(const LayerKv& kv) {
    return int64_t{kernels::kPageTokens} * kv.head_dim;
  }

 private:
  struct Key {
    uint64_t version;
    const void* k;
    const void* v;
    auto operator<=>(const Key&) const = default;
  };
  // Of the device's pool of memory, in the order of the upload stream.
  struct Free {
    cudaStream_t stream = nullptr;
    void operator()(std::byte* data) const { cudaFreeAsync(data, stream); }
  };
  using Memory = std::unique_ptr<std::byte[], Free>;

  struct Segments {
    Memory data;
    kernels::SegmentRef ref;
    std::pair<uint64_t, uint64_t> layouts;
  };
  struct Pages {
    std::vector<Memory> pages;  // K, then V, each [kv_heads][kPageTokens][head_dim]
    int64_t tokens = 0;
    int kv_heads = 0;
    int head_dim = 0;
  };

  Key KeyOf(uint64_t version, const void* k, const void* v);
  absl::StatusOr<Memory> Allocate(int64_t bytes);
  absl::Status UploadTokens(const LayerKv& kv, const ExactBlock& block, const Key& key,
                            Pages* pages);

  StagedUpload& upload_;
  const int64_t most_bytes_;
  LruMap<Key, Segments> segments_;
  LruMap<Key, Pages> pages_;
  std::vector<Key> nameless_;  // of this call
};

}  // namespace fourierkv::cuda
