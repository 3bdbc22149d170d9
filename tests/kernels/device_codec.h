// The encoder and the decoder of the GPU, for tests: host memory in, host memory out.

#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "compute/backend/cuda/device_buffer.h"
#include "compute/base/geometry.h"
#include "compute/codec/segment_layout.h"
#include "kernels/encode_segments.h"

namespace fourierkv {

// Skips, loudly, without a GPU.
class OnGpu : public testing::Test {
 protected:
  void SetUp() override;
};

// A copy in device memory; a failed expectation and an empty buffer if that cannot be.
DeviceBuffer CopyToDevice(const void* host, size_t size);
template <typename T>
DeviceBuffer CopyToDevice(const std::vector<T>& host) {
  return CopyToDevice(host.data(), host.size() * sizeof(T));
}

struct EncodedSegments {
  std::vector<std::vector<std::byte>> payloads;
  std::vector<kernels::EncodeReport> reports;
};

// Encodes every segment, each in memory of its own. Payloads start as 0xa5.
EncodedSegments EncodeOnDevice(const PartLayout& layout, KvDtype dtype, int64_t head_stride,
                               const std::vector<std::vector<uint16_t>>& segments);

// Decodes every payload; elements between heads stay `untouched`.
std::vector<std::vector<uint16_t>> DecodeOnDevice(
    const PartLayout& layout, KvDtype dtype, int64_t head_stride,
    const std::vector<std::vector<std::byte>>& payloads, uint16_t untouched = 0x1234);

}  // namespace fourierkv
