// The tables that attention reads, made from the places of a paged pool.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/fourier_attention.h"
#include "kernels/prefill_attention.h"

namespace fourierkv::kernels {

// Exact tokens of all layers in blocks of block_tokens, [layers][blocks][2][kv_heads][block_tokens]
// [head_dim], K before V. Page p is the part p mod n of block p / n, where n = block_tokens /
// kPageTokens; its heads are block_tokens * head_dim elements apart.
struct ExactPoolView {
  uint16_t* data;  // 16-byte aligned
  int32_t layers;
  int32_t blocks;
  int32_t kv_heads;
  int32_t block_tokens;  // a multiple of kPageTokens
  int32_t head_dim;      // a multiple of 8
};

// The compact segments of one layer, in slots: K's payload, and V's v_offset bytes behind it. Both
// numbers are multiples of 16.
struct LayerSlots {
  uint8_t* data;
  int64_t slot_bytes;
  int64_t v_offset;
};

struct PageEntry {
  int32_t page;
  int32_t tokens;  // 1 to kPageTokens
};

struct KvTablesParams {
  ExactPoolView pool;
  const LayerSlots* layer_slots;  // [layers]; may be null if there are no slots
  const PageEntry* page_entries;  // [pages]
  int32_t pages;
  const int32_t* slot_entries;  // [slots]
  int32_t slots;
  // Results; the tables of a layer are so many entries behind those of the one before.
  PageRef* page_table;
  int64_t page_table_stride;
  SegmentRef* segment_table;
  int64_t segment_table_stride;
  // The pages once more, as one sequence of which only the last is not full; may be null. Before
  // them stand, in every layer, the first `decoded_pages` pages of `decoded`, laid out as one layer
  // of the pool.
  DenseTile* tile_table;
  int64_t tile_table_stride;
  const uint16_t* decoded;
  int32_t decoded_pages;
};

// Enqueues the making of every layer's tables. All pointers are to device memory and must stay
// valid until the stream has run. Entries are the caller's to check. cudaErrorInvalidValue, with
// nothing enqueued, for null pointers and sizes out of bounds.
cudaError_t LaunchKvTables(const KvTablesParams& params, cudaStream_t stream);

}  // namespace fourierkv::kernels
