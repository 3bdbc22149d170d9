// Scratch memory of one thread.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace fourierkv {

// Hands out uninitialised, 64-byte aligned arrays that live until Reset. After a few rounds of the
// same work it no longer allocates. Not thread safe.
class ScratchArena {
 public:
  ScratchArena() = default;
  ScratchArena(const ScratchArena&) = delete;
  ScratchArena& operator=(const ScratchArena&) = delete;

  template <typename T>
  T* Take(int64_t count) {
    return static_cast<T*>(TakeBytes(static_cast<size_t>(count) * sizeof(T)));
  }

  // Invalidates every array handed out.
  void Reset();

 private:
  struct Release {
    void operator()(std::byte* memory) const;
  };
  struct Block {
    std::unique_ptr<std::byte, Release> memory;
    size_t size = 0;
  };

  void* TakeBytes(size_t bytes);
  void AddBlock(size_t bytes);

  std::vector<Block> blocks_;  // only the last has room left
  size_t used_ = 0;            // of the last block
};

}  // namespace fourierkv
