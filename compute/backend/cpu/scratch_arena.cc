#include "compute/backend/cpu/scratch_arena.h"

#include <algorithm>
#include <new>

namespace fourierkv {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kSmallestBlock = 256 << 10;

}  // namespace

void ScratchArena::Release::operator()(std::byte* memory) const {
  ::operator delete (memory, std::align_val_t{kAlignment});
}

void ScratchArena::Reset() {
  used_ = 0;
  if (blocks_.size() <= 1) return;
  size_t total = 0;
  for (const Block& block : blocks_) total += block.size;
  blocks_.clear();
  AddBlock(total);
}

void* ScratchArena::TakeBytes(size_t bytes) {
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (blocks_.empty() || blocks_.back().size - used_ < bytes) AddBlock(bytes);
  std::byte* const taken = blocks_.back().memory.get() + used_;
  used_ += bytes;
  return taken;
}

void ScratchArena::AddBlock(size_t bytes) {
  const size_t size = std::max(bytes, kSmallestBlock);
  blocks_.push_back({std::unique_ptr<std::byte, Release>(static_cast<std::byte*>(
                         ::operator new (size, std::align_val_t{kAlignment}))),
                     size});
  used_ = 0;
}

}  // namespace fourierkv
