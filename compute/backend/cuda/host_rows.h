// Host memory that is copied to or from a device.

#pragma once

#include <cstddef>

namespace fourierkv::cuda {

// `rows` pieces of `width` bytes that start every `pitch` bytes.
template <typename Byte>
struct RowsOf {
  Byte* data = nullptr;
  size_t pitch = 0;
  size_t width = 0;
  size_t rows = 1;

  size_t bytes() const { return width * rows; }
  RowsOf<const std::byte> as_const() const { return {data, pitch, width, rows}; }
};
using HostRows = RowsOf<std::byte>;
using ConstHostRows = RowsOf<const std::byte>;

}  // namespace fourierkv::cuda
