// Immutable bytes whose owner stays alive as long as somebody reads them.

#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

namespace fourierkv {

// `data` may be an aliasing pointer into a larger buffer (a network slice, a mapped file), so that
// nothing needs to be copied.
struct SharedBytes {
  std::shared_ptr<const std::byte> data;
  size_t size = 0;

  std::span<const std::byte> span() const { return {data.get(), size}; }

  static SharedBytes Of(std::shared_ptr<const std::vector<std::byte>> bytes) {
    const size_t size = bytes->size();
    const std::byte* data = bytes->data();
    return {std::shared_ptr<const std::byte>(std::move(bytes), data), size};
  }
};

}  // namespace fourierkv
