#include "compute/backend/cuda/device_layout.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "compute/backend/cuda/cuda_status.h"
#include "tests/compute/codec/random_codec_input.h"

namespace fourierkv {
namespace {

void ExpectSameBand(const kernels::BandView& view, const BandLayout& band,
                    const uint16_t* channels) {
  EXPECT_EQ(view.coefficients, band.coefficients);
  EXPECT_EQ(view.bits, band.bits);
  EXPECT_EQ(view.scale_offset, band.scale_offset);
  EXPECT_EQ(view.zero_offset, band.zero_offset);
  EXPECT_EQ(view.data_offset, band.data_offset);
  EXPECT_EQ(view.high_offset, band.high_offset);
  ASSERT_EQ(view.size, band.size);
  EXPECT_TRUE(std::equal(band.channels, band.channels + band.size, channels + view.channels));
}

void ExpectSameBasis(const kernels::PartView& view, const Basis& basis) {
  ASSERT_EQ(view.columns, basis.columns());
  for (int m = 0; m < view.columns; ++m) {
    EXPECT_TRUE(std::equal(basis.column(m), basis.column(m) + basis.segment_tokens(),
                           view.basis + static_cast<int64_t>(m) * view.segment_tokens));
  }
}

// `view` points to host memory.
void ExpectSame(const kernels::PartView& view, const PartLayout& layout) {
  EXPECT_EQ(view.kv_heads, layout.kv_heads);
  EXPECT_EQ(view.head_dim, layout.head_dim);
  ASSERT_EQ(view.segment_tokens, layout.segment_tokens);
  ExpectSameBasis(view, *layout.basis);
  ASSERT_EQ(view.head_bands[0], 0);
  EXPECT_EQ(view.head_offsets[layout.kv_heads], layout.payload_bytes);
  int64_t most = 0;
  for (int h = 0; h < layout.kv_heads; ++h) {
    const HeadLayout& head = layout.heads[h];
    EXPECT_EQ(view.head_offsets[h], head.offset);
    EXPECT_EQ(view.head_offsets[h + 1], head.offset + head.bytes);
    most = std::max(most, head.bytes);
    ASSERT_EQ(view.head_bands[h + 1] - view.head_bands[h], head.bands.size());
    for (size_t b = 0; b < head.bands.size(); ++b) {
      ExpectSameBand(view.bands[view.head_bands[h] + b], head.bands[b], view.channels);
    }
    if (head.rotation == nullptr) {
      EXPECT_TRUE(view.rotations == nullptr || view.rotations[h] == nullptr);
      continue;
    }
    ASSERT_NE(view.rotations, nullptr);
    const int64_t entries = static_cast<int64_t>(layout.head_dim) * layout.head_dim;
    EXPECT_TRUE(std::equal(head.rotation, head.rotation + entries, view.rotations[h]));
  }
  EXPECT_EQ(view.most_head_bytes, most);
}

TEST(HostPart, SaysWhatTheLayoutSays) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 20; ++i) {
    const ProfileLayout layout(RandomProfile(random));
    for (const Part part : kParts) {
      HostPart moved_from(layout.part(0, part));
      const HostPart host = std::move(moved_from);
      ExpectSame(host.view(), layout.part(0, part));
    }
    if (HasFailure()) return;
  }
}

TEST(CudaStatus, TellsApartWhatCallersCanDoSomethingAbout) {
  EXPECT_TRUE(CudaStatus(cudaSuccess, "x").ok());
  const absl::Status memory = CudaStatus(cudaErrorMemoryAllocation, "allocating 5 bytes");
  EXPECT_EQ(memory.message(), "allocating 5 bytes: out of memory (cudaErrorMemoryAllocation)");
  EXPECT_TRUE(absl::IsResourceExhausted(memory));
  EXPECT_TRUE(absl::IsInvalidArgument(CudaStatus(cudaErrorInvalidValue, "x")));
  EXPECT_TRUE(absl::IsFailedPrecondition(CudaStatus(cudaErrorNoDevice, "x")));
  EXPECT_TRUE(absl::IsUnimplemented(CudaStatus(cudaErrorNotSupported, "x")));
  EXPECT_TRUE(absl::IsInternal(CudaStatus(cudaErrorIllegalAddress, "x")));
}

TEST(DeviceBuffer, RefusesToCopyBeyondItsEnd) {
  DeviceBuffer empty = *DeviceBuffer::Create(0);
  EXPECT_EQ(empty.data(), nullptr);
  char byte = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(empty.CopyFrom(&byte, 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(empty.CopyTo(&byte, 1)));
  EXPECT_TRUE(empty.CopyFrom(nullptr, 0).ok());
}

class OnDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "NO GPU ON THIS MACHINE: nothing was copied to one";
    }
  }
};

// Replaces a pointer to `count` values on the device by one to a copy of them on the host.
template <typename T>
std::vector<T> Fetch(const T** values, int64_t count) {
  std::vector<T> host(count);
  EXPECT_EQ(cudaMemcpy(host.data(), *values, count * sizeof(T), cudaMemcpyDeviceToHost),
            cudaSuccess);
  *values = host.data();
  return host;
}

TEST_F(OnDevice, PartsSayWhatTheLayoutSays) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 10; ++i) {
    const ProfileLayout profile(RandomProfile(random));
    const PartLayout& layout = profile.part(0, Part::kK);
    const absl::StatusOr<DevicePart> device = DevicePart::Create(layout);
    ASSERT_TRUE(device.ok()) << device.status();
    kernels::PartView view = device->view();
    const auto basis = Fetch(&view.basis, int64_t{view.columns} * view.segment_tokens);
    const auto head_offsets = Fetch(&view.head_offsets, view.kv_heads + 1);
    const auto head_bands = Fetch(&view.head_bands, view.kv_heads + 1);
    const auto bands = Fetch(&view.bands, head_bands.back());
    const auto channels = Fetch(&view.channels, int64_t{view.kv_heads} * view.head_dim);
    std::vector<std::vector<float>> matrices;
    std::vector<const float*> rotations;
    if (view.rotations != nullptr) {
      rotations = Fetch(&view.rotations, view.kv_heads);
      for (const float*& rotation : rotations) {
        if (rotation == nullptr) continue;
        matrices.push_back(Fetch(&rotation, int64_t{view.head_dim} * view.head_dim));
      }
      view.rotations = rotations.data();
    }
    ExpectSame(view, layout);
    if (HasFailure()) return;
  }
}

TEST_F(OnDevice, BuffersBringBackWhatTheyWereGiven) {
  const std::vector<int> sent = {1, 2, 3, 4, 5};
  absl::StatusOr<DeviceBuffer> buffer = DeviceBuffer::CopyOf(sent.data(), 5 * sizeof(int));
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  const DeviceBuffer moved = *std::move(buffer);
  std::vector<int> got(5);
  ASSERT_TRUE(moved.CopyTo(got.data(), 5 * sizeof(int)).ok());
  EXPECT_EQ(got, sent);
}

TEST_F(OnDevice, MemoryThatIsNotThereIsAStatus) {
  const absl::StatusOr<DeviceBuffer> buffer = DeviceBuffer::Create(size_t{1} << 46);
  EXPECT_TRUE(absl::IsResourceExhausted(buffer.status())) << buffer.status();
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

}  // namespace
}  // namespace fourierkv
