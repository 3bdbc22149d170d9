#include "clients/loadtest/population.h"

#include <algorithm>
#include <utility>

#include "clients/loadtest/random.h"

namespace fourierkv::loadtest {
namespace {

constexpr uint32_t kVocabulary = 128256;

}  // namespace

Population::Population(const PopulationOptions& options)
    : options_(options), slots_(options.size) {}

int64_t Population::segments() const {
  return (options_.tokens + options_.segment_tokens - 1) / options_.segment_tokens;
}

int64_t Population::shared_segments() const {
  const int64_t all = segments();
  return std::min(static_cast<int64_t>(options_.prefix_share * static_cast<double>(all)), all - 1);
}

int Population::SegmentTokens(int64_t segment) const {
  return static_cast<int>(std::min<int64_t>(options_.segment_tokens,
                                            options_.tokens - segment * options_.segment_tokens));
}

void Population::Tokens(SequenceId id, int64_t first, int64_t count, uint32_t* out) const {
  const int64_t shared = shared_segments() * options_.segment_tokens;
  const uint64_t group = Mix64(Mix64(options_.seed, 0x97e), id.slot % options_.prefix_groups);
  const uint64_t own = Mix64(Mix64(options_.seed, id.slot), id.generation);
  for (int64_t t = first; t < first + count; ++t) {
    *out++ = ToBelow(Mix64((t < shared ? group : own) + static_cast<uint64_t>(t)), kVocabulary);
  }
}

SequenceId Population::Current(uint32_t slot) const {
  std::lock_guard lock(mutex_);
  return {slot, slots_[slot].current};
}

SequenceId Population::Fresh(uint32_t slot) {
  std::lock_guard lock(mutex_);
  return {slot, ++slots_[slot].newest};
}

SequenceKeys Population::Keys(SequenceId id) const {
  std::lock_guard lock(mutex_);
  const Slot& slot = slots_[id.slot];
  return slot.current == id.generation ? slot.keys : nullptr;
}

void Population::Learn(SequenceId id, std::vector<Digest> keys) {
  std::lock_guard lock(mutex_);
  Slot& slot = slots_[id.slot];
  if (id.generation < slot.current) return;
  slot.current = id.generation;
  slot.keys = std::make_shared<const std::vector<Digest>>(std::move(keys));
}

}  // namespace fourierkv::loadtest
