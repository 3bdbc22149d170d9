// The pieces of the CPU backend that run on its threads.

#pragma once

#include <vector>

#include "compute/backend/compute_backend.h"
#include "compute/backend/cpu/scratch_arena.h"
#include "compute/base/thread_pool.h"

namespace fourierkv::cpu {

// Threads and their memory. One call at a time uses it.
struct Workers {
  explicit Workers(int threads) : pool(threads), arenas(pool.threads()) {}

  // The thread's scratch, emptied.
  ScratchArena& Scratch(int thread) {
    arenas[thread].Reset();
    return arenas[thread];
  }

  ThreadPool pool;
  std::vector<ScratchArena> arenas;  // one a thread
  ScratchArena shared;  // of the calling thread, for what all tasks of a call read or write
};

// For validated arguments with query_tokens = 1: split-KV over runs of blocks, then a merge.
void AttendSingleQuery(const AttentionArgs& args, Workers& workers);

// For validated arguments with any query_tokens: flash-style tiles over decoded blocks.
void AttendChunk(const AttentionArgs& args, Workers& workers);

}  // namespace fourierkv::cpu
