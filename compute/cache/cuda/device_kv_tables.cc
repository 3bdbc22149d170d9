#include "compute/cache/cuda/device_kv_tables.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/cache/dense_kv_cache.h"

namespace fourierkv {
namespace {

using kernels::kPageTokens;

int64_t PageCount(const DeviceKvCache& cache, int64_t more) {
  return (cache.exact_tokens() + more + kPageTokens - 1) / kPageTokens;
}

// Keeps every layer's table aligned, whatever the size of an entry.
int64_t Stride(int64_t entries) { return (entries + 15) / 16 * 16; }

template <typename T>
absl::Status CopyAsync(const DeviceBuffer& to, const std::vector<T>& from, size_t offset,
                       cudaStream_t stream) {
  if (from.empty()) return absl::OkStatus();
  // The runtime has read ordinary host memory when the call returns.
  return CudaStatus(cudaMemcpyAsync(to.as<T>() + offset, from.data(), from.size() * sizeof(T),
                                    cudaMemcpyHostToDevice, stream),
                    "copying tables of KV caches");
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceKvTables>> DeviceKvTables::Create(
    std::shared_ptr<const DeviceKvPool> pool, int sequences, int64_t tile_tokens) {
  if (sequences < 1 || sequences > 65535 || tile_tokens < 0 || tile_tokens > kMaxCacheTokens) {
    return absl::InvalidArgumentError(absl::StrCat("tables for ", sequences, " sequences and ",
                                                   tile_tokens, " tokens of a prompt"));
  }
  std::unique_ptr<DeviceKvTables> tables(new DeviceKvTables(std::move(pool), sequences));
  if (absl::Status s = tables->Allocate(tile_tokens); !s.ok()) return s;
  return tables;
}

absl::Status DeviceKvTables::Allocate(int64_t tile_tokens) {
  const int64_t layers = pool_->geometry().layers;
  const int64_t pages = int64_t{pool_->blocks()} * pool_->segment_tokens() / kPageTokens;
  page_stride_ = Stride(pages);
  segment_stride_ = Stride(pool_->slots());
  tile_stride_ = Stride((tile_tokens + kPageTokens - 1) / kPageTokens);
  const std::pair<DeviceBuffer*, int64_t> buffers[] = {
      {&page_table_, layers * page_stride_ * static_cast<int64_t>(sizeof(kernels::PageRef))},
      {&segment_table_,
       layers * segment_stride_ * static_cast<int64_t>(sizeof(kernels::SegmentRef))},
      {&tile_table_, layers * tile_stride_ * static_cast<int64_t>(sizeof(kernels::DenseTile))},
      {&device_pages_, pages * static_cast<int64_t>(sizeof(kernels::PageEntry))},
      {&device_slots_, pool_->slots() * static_cast<int64_t>(sizeof(int32_t))},
      {&device_offsets_, 2 * (sequences_ + 1) * static_cast<int64_t>(sizeof(int32_t))}};
  for (const auto& [buffer, bytes] : buffers) {
    absl::StatusOr<DeviceBuffer> made = DeviceBuffer::Create(static_cast<size_t>(bytes));
    if (!made.ok()) return made.status();
    *buffer = *std::move(made);
  }
  return absl::OkStatus();
}

void DeviceKvTables::AddCache(const DeviceKvCache& cache, int64_t more) {
  const int64_t tokens = cache.exact_tokens() + more;
  const int pages_per_block = pool_->segment_tokens() / kPageTokens;
  for (int64_t first = 0; first < tokens; first += kPageTokens) {
    const int64_t page = first / kPageTokens;
    page_entries_.push_back(
        {static_cast<int32_t>(cache.blocks()[page / pages_per_block] * pages_per_block +
                              page % pages_per_block),
         static_cast<int32_t>(std::min<int64_t>(kPageTokens, tokens - first))});
  }
  slot_entries_.insert(slot_entries_.end(), cache.slots().begin(), cache.slots().end());
  page_offsets_.push_back(static_cast<int32_t>(page_entries_.size()));
  segment_offsets_.push_back(static_cast<int32_t>(slot_entries_.size()));
}

absl::Status DeviceKvTables::Upload(const uint16_t* decoded, int32_t decoded_pages, bool tiles,
                                    cudaStream_t stream) {
  absl::Status s = CopyAsync(device_pages_, page_entries_, 0, stream);
  if (s.ok()) s = CopyAsync(device_slots_, slot_entries_, 0, stream);
  if (s.ok()) s = CopyAsync(device_offsets_, page_offsets_, 0, stream);
  if (s.ok()) s = CopyAsync(device_offsets_, segment_offsets_, sequences_ + 1, stream);
  if (!s.ok()) return s;
  kernels::KvTablesParams params = {};
  params.pool = pool_->exact();
  params.layer_slots = pool_->layer_slots();
  params.page_entries = device_pages_.as<const kernels::PageEntry>();
  params.pages = static_cast<int32_t>(page_entries_.size());
  params.slot_entries = device_slots_.as<const int32_t>();
  params.slots = static_cast<int32_t>(slot_entries_.size());
  params.page_table = page_table_.as<kernels::PageRef>();
  params.page_table_stride = page_stride_;
  params.segment_table = segment_table_.as<kernels::SegmentRef>();
  params.segment_table_stride = segment_stride_;
  params.tile_table = tiles ? tile_table_.as<kernels::DenseTile>() : nullptr;
  params.tile_table_stride = tile_stride_;
  params.decoded = decoded;
  params.decoded_pages = decoded_pages;
  return CudaStatus(kernels::LaunchKvTables(params, stream), "making tables of KV caches");
}

absl::Status DeviceKvTables::Build(std::span<const DeviceKvCache* const> caches, int64_t more,
                                   cudaStream_t stream) {
  if (caches.size() > static_cast<size_t>(sequences_)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a batch of ", caches.size(), " sequences; at most ", sequences_, " fit"));
  }
  std::vector<std::pair<uint64_t, int64_t>> wanted;
  wanted.reserve(caches.size());
  for (const DeviceKvCache* cache : caches) {
    wanted.emplace_back(cache->version(), PageCount(*cache, more));
  }
  if (more <= 1 && wanted == built_) return absl::OkStatus();
  built_.clear();  // until the new ones are enqueued
  page_entries_.clear();
  slot_entries_.clear();
  page_offsets_.assign(1, 0);
  segment_offsets_.assign(1, 0);
  for (const DeviceKvCache* cache : caches) AddCache(*cache, more);
  if (absl::Status s = Upload(nullptr, 0, false, stream); !s.ok()) return s;
  built_ = std::move(wanted);
  return absl::OkStatus();
}

absl::Status DeviceKvTables::BuildTiles(const DeviceKvCache& cache, int64_t more,
                                        const uint16_t* decoded, cudaStream_t stream) {
  built_.clear();
  const int64_t decoded_pages = cache.compact_tokens() / kPageTokens;
  const int64_t tiles = decoded_pages + PageCount(cache, more);
  if (tiles > tile_stride_) {
    return absl::ResourceExhaustedError(absl::StrCat("a prompt of ", cache.length() + more,
                                                     " tokens; tables are for ",
                                                     tile_stride_ * kPageTokens));
  }
  page_entries_.clear();
  slot_entries_.clear();
  page_offsets_.assign(1, 0);
  segment_offsets_.assign(1, 0);
  AddCache(cache, more);
  tile_count_ = static_cast<int32_t>(tiles);
  return Upload(decoded, static_cast<int32_t>(decoded_pages), true, stream);
}

}  // namespace fourierkv
