#include "compute/backend/cuda/device_contents.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/base/unique_id.h"

namespace fourierkv::cuda {
namespace {

constexpr int64_t kElementBytes = 2;
constexpr int64_t kPage = kernels::kPageTokens;

int64_t AlignUp(int64_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

void DeviceContents::BeginCall() {
  for (const Key& key : nameless_) {
    segments_.Remove(key);
    pages_.Remove(key);
  }
  nameless_.clear();
  segments_.BeginRound();
  pages_.BeginRound();
  // Whatever is beyond the limit goes from both alike: they are used at the same time.
  const int64_t bytes = segments_.bytes() + pages_.bytes();
  if (bytes <= most_bytes_) return;
  const double share = static_cast<double>(most_bytes_) / static_cast<double>(bytes);
  segments_.Trim(static_cast<int64_t>(share * static_cast<double>(segments_.bytes())));
  pages_.Trim(static_cast<int64_t>(share * static_cast<double>(pages_.bytes())));
}

void DeviceContents::Clear() {
  BeginCall();
  segments_.Trim(0);
  pages_.Trim(0);
}

DeviceContents::Key DeviceContents::KeyOf(uint64_t version, const void* k, const void* v) {
  if (version != 0) return {version, k, v};
  nameless_.push_back({NextUniqueId(), k, v});
  return nameless_.back();
}

absl::StatusOr<DeviceContents::Memory> DeviceContents::Allocate(int64_t bytes) {
  void* data = nullptr;
  if (const cudaError_t error = cudaMallocAsync(&data, bytes, upload_.stream());
      error != cudaSuccess) {
    cudaGetLastError();
    return CudaStatus(error,
                      absl::StrCat("allocating ", bytes,
                                   " bytes of device memory for a copy of the cache, beside ",
                                   segments_.bytes() + pages_.bytes(), " bytes of others"));
  }
  return Memory(static_cast<std::byte*>(data), Free{upload_.stream()});
}

absl::StatusOr<kernels::SegmentRef> DeviceContents::Segment(const LayerKv& kv,
                                                            const CompactBlock& block) {
  const Key key = KeyOf(block.version, block.k, block.v);
  const std::pair layouts = {kv.k_layout->id, kv.v_layout->id};
  if (const Segments* found = segments_.Find(key)) {
    if (found->layouts == layouts) return found->ref;
  }
  const int64_t k_bytes = kv.k_layout->payload_bytes;
  const int64_t v_bytes = kv.v_layout->payload_bytes;
  const int64_t bytes = AlignUp(k_bytes) + v_bytes;
  absl::StatusOr<Memory> data = Allocate(bytes);
  if (!data.ok()) return data.status();
  std::byte* const k = data->get();
  std::byte* const v = k + AlignUp(k_bytes);
  if (absl::Status s = upload_.Copy(block.k, k_bytes, k); !s.ok()) return s;
  if (absl::Status s = upload_.Copy(block.v, v_bytes, v); !s.ok()) return s;
  const kernels::SegmentRef ref = {reinterpret_cast<const uint8_t*>(k),
                                   reinterpret_cast<const uint8_t*>(v)};
  segments_.Add(key, {*std::move(data), ref, layouts}, bytes);
  return ref;
}

absl::Status DeviceContents::UploadTokens(const LayerKv& kv, const ExactBlock& block,
                                          const Key& key, Pages* pages) {
  const int64_t row_bytes = kv.head_dim * kElementBytes;
  const int64_t part_bytes = kv.kv_heads * kPage * row_bytes;
  while (pages->tokens < block.tokens) {
    const int64_t in_page = pages->tokens % kPage;
    if (in_page == 0) {
      absl::StatusOr<Memory> page = Allocate(2 * part_bytes);
      if (!page.ok()) return page.status();
      pages->pages.push_back(*std::move(page));
      pages_.Grow(key, 2 * part_bytes);
    }
    const int64_t n = std::min(kPage - in_page, block.tokens - pages->tokens);
    std::byte* const to = pages->pages.back().get() + in_page * row_bytes;
    for (const auto& [from, offset] : {std::pair{block.k, int64_t{0}}, {block.v, part_bytes}}) {
      const ConstHostRows rows = {
          reinterpret_cast<const std::byte*>(from + pages->tokens * kv.head_dim),
          static_cast<size_t>(block.head_stride * kElementBytes),
          static_cast<size_t>(n * row_bytes), static_cast<size_t>(kv.kv_heads)};
      if (absl::Status s = upload_.Copy(rows, to + offset, kPage * row_bytes); !s.ok()) return s;
    }
    pages->tokens += n;
  }
  return absl::OkStatus();
}

absl::Status DeviceContents::AddPages(const LayerKv& kv, const ExactBlock& block,
                                      std::vector<kernels::PageRef>* pages) {
  if (block.tokens == 0) return absl::OkStatus();
  const Key key = KeyOf(block.version, block.k, block.v);
  Pages* kept = pages_.Find(key);
  if (kept == nullptr || kept->kv_heads != kv.kv_heads || kept->head_dim != kv.head_dim) {
    Pages fresh;
    fresh.kv_heads = kv.kv_heads;
    fresh.head_dim = kv.head_dim;
    kept = pages_.Add(key, std::move(fresh), 0);
  }
  if (absl::Status s = UploadTokens(kv, block, key, kept); !s.ok()) return s;
  const int64_t part_size = kv.kv_heads * PageHeadStride(kv);
  for (int64_t first = 0; first < block.tokens; first += kPage) {
    const auto* k = reinterpret_cast<const uint16_t*>(kept->pages[first / kPage].get());
    pages->push_back(
        {k, k + part_size, static_cast<int32_t>(std::min(kPage, block.tokens - first)), 0});
  }
  return absl::OkStatus();
}

}  // namespace fourierkv::cuda
