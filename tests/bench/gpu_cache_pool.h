// Random caches for the attention benchmark: pools of segments and pages on the host, and the
// float64 reference over what they mean. No device code.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "compute/base/thread_pool.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv {

// KV heads whose results are compared with the reference: the first and the last.
inline constexpr int kCheckedHeads = 2;

// K and V of `size` items (segments or pages), as the device reads them and what they mean.
struct CachePool {
  int size = 0;
  int tokens = 0;               // of an item
  size_t k_bytes = 0;           // of an item
  size_t v_bytes = 0;           // of an item
  std::vector<std::byte> k, v;  // [size][k_bytes], [size][v_bytes]
  std::vector<double> k_exact;  // [size][kCheckedHeads][tokens][head_dim]
  std::vector<double> v_exact;  // likewise

  // Of one item and checked head: [tokens][head_dim].
  std::span<const double> Exact(const std::vector<double>& part, int item, int head) const;
};

// Segments encoded by the float64 reference codec; their meaning is what it decodes.
CachePool MakeSegmentPool(const ProfileLayout& layout, int size, ThreadPool* threads);
// Pages of bf16: [kv_heads][tokens][head_dim].
CachePool MakePagePool(int size, ThreadPool* threads);

// What a sequence consists of, as items of pools.
struct CachedSequence {
  std::vector<int> segments;
  std::vector<int> pages;
};

// Softmax attention in float64 of the query heads of one checked KV head: q and out
// [group][head_dim]. Either pool may be null if the sequence has none of its items.
std::vector<double> ReferenceAttention(const CachePool* segments, const CachePool* pages,
                                       const CachedSequence& sequence, int head,
                                       std::span<const double> q, double scale);

}  // namespace fourierkv
