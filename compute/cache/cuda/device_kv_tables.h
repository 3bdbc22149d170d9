// The tables through which attention finds the caches of a batch of sequences.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"
#include "compute/cache/cuda/device_kv_cache.h"
#include "compute/cache/cuda/device_kv_pool.h"
#include "kernels/kv_tables.h"

namespace fourierkv {

// Tables of all layers in device memory, large enough for everything that a pool can hold: their
// addresses never change, so captured graphs may contain them. One thread.
class DeviceKvTables {
 public:
  // For up to `sequences` at a time; tiles for one of up to `tile_tokens` tokens.
  static absl::StatusOr<std::unique_ptr<DeviceKvTables>> Create(
      std::shared_ptr<const DeviceKvPool> pool, int sequences, int64_t tile_tokens);

  // Enqueues what is needed for the tables to be those of `caches`, with `more` further tokens of
  // each, for which places are reserved. Pages of partly new tokens may count fewer until these are
  // appended, if more is 1. Nothing is done if nothing has changed since the last call.
  absl::Status Build(std::span<const DeviceKvCache* const> caches, int64_t more,
                     cudaStream_t stream);

  // The same for one cache, tiles included. Those of its compact segments, if it has any, are in
  // `decoded`: [segments][2][kv_heads][S][head_dim].
  absl::Status BuildTiles(const DeviceKvCache& cache, int64_t more, const uint16_t* decoded,
                          cudaStream_t stream);

  // Index, in the pages of a layer, of the page with `position` of the i-th cache: not before its
  // exact tokens.
  int32_t PageOf(size_t i, const DeviceKvCache& cache, int64_t position) const {
    return page_offsets_[i] +
           static_cast<int32_t>((position - cache.compact_tokens()) / kernels::kPageTokens);
  }

  kernels::PageRef* pages(int layer) const {
    return page_table_.as<kernels::PageRef>() + layer * page_stride_;
  }
  const kernels::SegmentRef* segments(int layer) const {
    return segment_table_.as<const kernels::SegmentRef>() + layer * segment_stride_;
  }
  const kernels::DenseTile* tiles(int layer) const {
    return tile_table_.as<const kernels::DenseTile>() + layer * tile_stride_;
  }
  int32_t tile_count() const { return tile_count_; }
  const int32_t* page_offsets() const { return device_offsets_.as<const int32_t>(); }
  const int32_t* segment_offsets() const { return page_offsets() + sequences_ + 1; }

 private:
  DeviceKvTables(std::shared_ptr<const DeviceKvPool> pool, int sequences)
      : pool_(std::move(pool)), sequences_(sequences) {}
  absl::Status Allocate(int64_t tile_tokens);
  void AddCache(const DeviceKvCache& cache, int64_t more);
  absl::Status Upload(const uint16_t* decoded, int32_t decoded_pages, bool tiles,
                      cudaStream_t stream);

  const std::shared_ptr<const DeviceKvPool> pool_;
  const int sequences_;
  int64_t page_stride_ = 0, segment_stride_ = 0, tile_stride_ = 0;
  DeviceBuffer page_table_, segment_table_, tile_table_;
  DeviceBuffer device_pages_, device_slots_;  // entries
  DeviceBuffer device_offsets_;               // of pages, then of segments
  std::vector<kernels::PageEntry> page_entries_;
  std::vector<int32_t> slot_entries_;
  std::vector<int32_t> page_offsets_, segment_offsets_;
  int32_t tile_count_ = 0;
  // What the tables on the device are of: version and number of pages of each cache.
  std::vector<std::pair<uint64_t, int64_t>> built_;
};

}  // namespace fourierkv
