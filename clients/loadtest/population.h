// The sequences of a run: their tokens, and the keys that the service gave them.

#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "compute/base/content_hash.h"

namespace fourierkv::loadtest {

struct PopulationOptions {
  uint32_t size = 1;     // slots
  int64_t tokens = 256;  // of every sequence
  int segment_tokens = 256;
  double prefix_share = 0;  // of a sequence's segments, in [0, 1]
  uint32_t prefix_groups = 1;
  uint64_t seed = 1;
};

// A slot holds one sequence at a time; a fresh put gives it the next generation.
struct SequenceId {
  uint32_t slot = 0;
  uint32_t generation = 0;

  bool operator==(const SequenceId&) const = default;
};

using SequenceKeys = std::shared_ptr<const std::vector<Digest>>;

// Thread safe. Holds 32 bytes for each segment of the slots whose keys are known.
class Population {
 public:
  explicit Population(const PopulationOptions& options);

  const PopulationOptions& options() const { return options_; }
  int64_t segments() const;         // of a sequence, its tail included
  int64_t shared_segments() const;  // common to all of a group; never all, the last one is its own
  int SegmentTokens(int64_t segment) const;

  // Writes tokens [first, first + count) of a sequence: below 128256, as large vocabularies are.
  void Tokens(SequenceId id, int64_t first, int64_t count, uint32_t* out) const;

  // The sequence that gets and matches of a slot ask for: the last one that was put.
  SequenceId Current(uint32_t slot) const;
  // One that was never put. It becomes current with Learn.
  SequenceId Fresh(uint32_t slot);

  // Keys of all segments of the slot's current sequence; null while not all are known.
  SequenceKeys Keys(SequenceId id) const;
  // The service holds the sequence under these keys; it becomes current unless a later one is.
  void Learn(SequenceId id, std::vector<Digest> keys);

 private:
  struct Slot {
    uint32_t current = 0;
    uint32_t newest = 0;
    SequenceKeys keys;
  };

  const PopulationOptions options_;
  mutable std::mutex mutex_;
  std::vector<Slot> slots_;
};

}  // namespace fourierkv::loadtest
