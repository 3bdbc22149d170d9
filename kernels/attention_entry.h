// What a schedule of attention consists of: who works on what, ready to be read.

#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FOURIERKV_HOST_DEVICE __host__ __device__
#else
#define FOURIERKV_HOST_DEVICE
#endif

namespace fourierkv::kernels {

inline constexpr int kAttentionWarps = 4;  // of a block
// Query heads of one KV head are worked on up to 8 at a time, a *group*.
inline constexpr int kGroupHeads = 8;
// Parts of one result that are added up at once (attention_merge.cuh).
inline constexpr int kMergedParts = 16;

// Everything that a schedule depends on beside the tables' offsets.
struct AttentionScheduleShape {
  int32_t batch;              // sequences
  int32_t kv_heads;           // 1 to 256
  int32_t query_heads;        // a multiple of kv_heads; at most 16 to each
  int32_t units_per_segment;  // of 256 tokens; 1 to 4
  int32_t worker_warps;       // 1: every warp has a list of its own; 4: every block of 4 warps
  int32_t processors;         // multiprocessors, each with equally many blocks at the same time
  int32_t workers;            // lists: of all these blocks; 1 to kMaxWorkers
  int32_t unit_cost;          // time that a unit takes, against ...
  int32_t page_cost;          // ... a page. They decide about balance, not about results.
};
inline constexpr int kMaxWorkers = 2112;
inline constexpr int kMaxCost = 1 << 16;

// Workers of a block.
FOURIERKV_HOST_DEVICE inline int WorkersOfBlock(const AttentionScheduleShape& shape) {
  return kAttentionWarps / shape.worker_warps;
}

// Consecutive units, or pages, of one sequence and group: what one worker does of them before it
// goes on to its next entry. Workers of a block whose last entries are of the same piece leave one
// record together, the others one each.
//
// The entries of a schedule are, first, one for each worker: where its list begins; behind them two
// for each group of each sequence: its units, its pages, for parts that continue a list. Of these
// only those are in use that some list leads to.
struct alignas(16) AttentionEntry {
  int32_t flags;  // of kPages, ...
  int32_t kv_head;
  int32_t heads;  // query heads of the group, 1 to 8
  int32_t row;    // of q and out: of its first head
  int32_t item;   // index in the table of segments, or of pages, of the sequence's first
  int32_t first;  // unit or page, of those of the sequence
  int32_t count;  // of units or pages; 0: no work
  int32_t next;   // entry of the same worker; -1: none
  // The group's parts, of its units, then of its pages: how many there are, and the record of part
  // 0, which those of the others follow.
  int32_t parts[2];
  int32_t records[2];
  int32_t part;     // which of them this is
  int32_t team;     // bit i: whether the block's worker i has this part, too
  int32_t counter;  // the first of the piece's own among workers'
  int32_t group;    // its number among all of the batch
};
static_assert(sizeof(AttentionEntry) == 64);

// Flags of entries.
inline constexpr int32_t kPages = 1;
inline constexpr int32_t kSomeEmpty = 2;    // of workers' first: some sequence has no token
inline constexpr int32_t kEmptyTokens = 4;  // of a group's units: its sequence has no token

}  // namespace fourierkv::kernels
