#include "tests/kernels/device_codec.h"

#include <cuda_runtime_api.h>

#include <utility>

#include "compute/backend/cuda/device_layout.h"
#include "kernels/decode_segments.h"

namespace fourierkv {
namespace {

kernels::ElementType TypeOf(KvDtype dtype) {
  return dtype == KvDtype::kBf16 ? kernels::ElementType::kBf16 : kernels::ElementType::kFp16;
}

// Buffers of the same size, and the table of their addresses in device memory.
class DeviceRows {
 public:
  template <typename T>
  explicit DeviceRows(const std::vector<std::vector<T>>& rows) {
    std::vector<std::byte*> addresses;
    for (const std::vector<T>& row : rows) {
      rows_.push_back(CopyToDevice(row));
      addresses.push_back(rows_.back().data());
    }
    table_ = CopyToDevice(addresses);
  }

  template <typename T>
  T* const* table() const {
    return table_.as<T* const>();
  }
  template <typename T>
  std::vector<std::vector<T>> Read() const {
    std::vector<std::vector<T>> rows;
    for (const DeviceBuffer& row : rows_) {
      rows.emplace_back(row.size() / sizeof(T));
      EXPECT_TRUE(row.CopyTo(rows.back().data(), row.size()).ok());
    }
    return rows;
  }

 private:
  std::vector<DeviceBuffer> rows_;
  DeviceBuffer table_;
};

}  // namespace

void OnGpu::SetUp() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    GTEST_SKIP() << "NO GPU ON THIS MACHINE: the kernels were not run";
  }
}

DeviceBuffer CopyToDevice(const void* host, size_t size) {
  absl::StatusOr<DeviceBuffer> buffer = DeviceBuffer::CopyOf(host, size);
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return buffer.ok() ? *std::move(buffer) : DeviceBuffer();
}

EncodedSegments EncodeOnDevice(const PartLayout& layout, KvDtype dtype, int64_t head_stride,
                               const std::vector<std::vector<uint16_t>>& segments) {
  const auto count = static_cast<int32_t>(segments.size());
  EncodedSegments encoded;
  absl::StatusOr<DevicePart> part = DevicePart::Create(layout);
  if (!part.ok()) {
    ADD_FAILURE() << part.status();
    return encoded;
  }
  const DeviceRows dense(segments);
  const DeviceRows payloads(std::vector<std::vector<std::byte>>(
      segments.size(), std::vector<std::byte>(layout.payload_bytes, std::byte{0xa5})));
  encoded.reports.resize(segments.size());
  const DeviceBuffer reports = CopyToDevice(encoded.reports);
  const std::vector<std::byte> garbage(kernels::EncodeSegmentsWorkspace(part->view(), count),
                                       std::byte{0xa5});
  const DeviceBuffer workspace = CopyToDevice(garbage);

  kernels::EncodeSegmentsParams params = {};
  params.part = part->view();
  params.dense = dense.table<const uint16_t>();
  params.head_stride = head_stride;
  params.dtype = TypeOf(dtype);
  params.payloads = payloads.table<uint8_t>();
  params.payload_bytes = layout.payload_bytes;
  params.reports = reports.as<kernels::EncodeReport>();
  params.workspace = workspace.data();
  params.segments = count;
  EXPECT_EQ(kernels::LaunchEncodeSegments(params, nullptr), cudaSuccess);
  const cudaError_t status = cudaDeviceSynchronize();
  EXPECT_EQ(status, cudaSuccess) << cudaGetErrorString(status);
  encoded.payloads = payloads.Read<std::byte>();
  EXPECT_TRUE(reports.CopyTo(encoded.reports.data(), reports.size()).ok());
  return encoded;
}

std::vector<std::vector<uint16_t>> DecodeOnDevice(
    const PartLayout& layout, KvDtype dtype, int64_t head_stride,
    const std::vector<std::vector<std::byte>>& payloads, uint16_t untouched) {
  absl::StatusOr<DevicePart> part = DevicePart::Create(layout);
  if (!part.ok()) {
    ADD_FAILURE() << part.status();
    return {};
  }
  const DeviceRows compact(payloads);
  const DeviceRows dense(std::vector<std::vector<uint16_t>>(
      payloads.size(), std::vector<uint16_t>(layout.kv_heads * head_stride, untouched)));
  kernels::DecodeSegmentsParams params = {};
  params.part = part->view();
  params.payloads = compact.table<const uint8_t>();
  params.dense = dense.table<uint16_t>();
  params.head_stride = head_stride;
  params.dtype = TypeOf(dtype);
  params.segments = static_cast<int32_t>(payloads.size());
  EXPECT_EQ(kernels::LaunchDecodeSegments(params, nullptr), cudaSuccess);
  const cudaError_t status = cudaDeviceSynchronize();
  EXPECT_EQ(status, cudaSuccess) << cudaGetErrorString(status);
  return dense.Read<uint16_t>();
}

}  // namespace fourierkv
