#include "kernels/kv_tables.h"

namespace fourierkv::kernels {
namespace {

constexpr int kThreads = 128;

// K of head 0 of a page; V stands part_size elements behind it.
__device__ const uint16_t* PageData(const uint16_t* layer, int page, const ExactPoolView& pool,
                                    int64_t part_size) {
  const int pages_per_block = pool.block_tokens / kPageTokens;
  return layer + page / pages_per_block * 2 * part_size +
         page % pages_per_block * static_cast<int64_t>(kPageTokens) * pool.head_dim;
}

// One row of blocks to a layer.
__global__ void KvTablesKernel(KvTablesParams params) {
  const ExactPoolView& pool = params.pool;
  const int layer = blockIdx.y;
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const int64_t head_stride = static_cast<int64_t>(pool.block_tokens) * pool.head_dim;
  const int64_t part_size = pool.kv_heads * head_stride;
  DenseTile* const tiles = params.tile_table + layer * params.tile_table_stride;
  if (i < params.pages) {
    const PageEntry entry = params.page_entries[i];
    const uint16_t* k =
        PageData(pool.data + layer * (2 * part_size * pool.blocks), entry.page, pool, part_size);
    PageRef ref = {};
    ref.k = k;
    ref.v = k + part_size;
    ref.tokens = entry.tokens;
    params.page_table[layer * params.page_table_stride + i] = ref;
    if (params.tile_table != nullptr) {
      const int tile = params.decoded_pages + i;
      tiles[tile] = {ref.k,      ref.v, head_stride, static_cast<int64_t>(tile) * kPageTokens,
                     ref.tokens, 0};
    }
  }
  if (params.tile_table != nullptr && i < params.decoded_pages) {
    const uint16_t* k = PageData(params.decoded, i, pool, part_size);
    tiles[i] = {k, k + part_size, head_stride, static_cast<int64_t>(i) * kPageTokens, kPageTokens,
                0};
  }
  if (i < params.slots) {
    const LayerSlots& slots = params.layer_slots[layer];
    const uint8_t* k = slots.data + params.slot_entries[i] * slots.slot_bytes;
    params.segment_table[layer * params.segment_table_stride + i] = {k, k + slots.v_offset};
  }
}

bool Valid(const KvTablesParams& params) {
  const ExactPoolView& pool = params.pool;
  const bool shape = pool.layers >= 1 && pool.layers <= 65535 && pool.kv_heads >= 1 &&
                     pool.head_dim >= 8 && pool.head_dim % 8 == 0 && pool.blocks >= 0 &&
                     pool.block_tokens >= kPageTokens && pool.block_tokens % kPageTokens == 0;
  const bool pages =
      params.pages >= 0 && params.page_table_stride >= params.pages &&
      (params.pages == 0 ||
       (pool.data != nullptr && params.page_entries != nullptr && params.page_table != nullptr));
  const bool slots =
      params.slots >= 0 && params.segment_table_stride >= params.slots &&
      (params.slots == 0 || (params.layer_slots != nullptr && params.slot_entries != nullptr &&
                             params.segment_table != nullptr));
  const bool tiles =
      params.decoded_pages >= 0 && (params.decoded_pages == 0 || params.decoded != nullptr) &&
      (params.tile_table == nullptr ||
       params.tile_table_stride >= static_cast<int64_t>(params.pages) + params.decoded_pages);
  return shape && pages && slots && tiles;
}

}  // namespace

cudaError_t LaunchKvTables(const KvTablesParams& params, cudaStream_t stream) {
  if (!Valid(params)) return cudaErrorInvalidValue;
  int entries = params.pages > params.slots ? params.pages : params.slots;
  if (params.tile_table != nullptr && params.decoded_pages > entries) {
    entries = params.decoded_pages;
  }
  if (entries == 0) return cudaSuccess;
  const dim3 grid((entries - 1) / kThreads + 1, params.pool.layers);
  KvTablesKernel<<<grid, kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace fourierkv::kernels
