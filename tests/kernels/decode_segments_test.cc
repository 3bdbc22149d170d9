// The GPU decoder against the float64 reference. Needs a GPU; says so and skips without one.

#include "kernels/decode_segments.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "compute/base/bfloat16.h"
#include "compute/codec/reference_codec.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv {
namespace {

// Device memory filled from a vector.
template <typename T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& host) : size_(host.size()) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, size_ * sizeof(T)), cudaSuccess);
    data_ = static_cast<T*>(memory);
    EXPECT_EQ(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  ~OnDevice() { cudaFree(data_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  T* data() const { return data_; }
  std::vector<T> Read() const {
    std::vector<T> host(size_);
    EXPECT_EQ(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return host;
  }

 private:
  size_t size_;
  T* data_ = nullptr;
};

class DecodeSegments : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "NO GPU ON THIS MACHINE: the kernels were not run";
    }
  }
};

// Heads with every kind of band, in random sizes and with shuffled channels.
CodecProfile RandomProfile(const KvGeometry& geometry, int segment_tokens, std::mt19937& random) {
  CodecProfile profile = UniformProfile(geometry, 0.5, 0.5, 8, 4);
  profile.segment_tokens = segment_tokens;
  for (HeadProfile& head : profile.heads) {
    const int coefficients[] = {1, 3, 8, 16};
    Band kinds[] = {{coefficients[random() % 4], 8, {}}, {0, 4, {}}, {0, 8, {}}, {0, 16, {}}};
    for (int d = 0; d < geometry.head_dim; ++d) {
      kinds[random() % 4].channels.push_back(static_cast<uint16_t>(d));
    }
    head.bands.clear();
    for (Band& band : kinds) {
      if (!band.channels.empty()) head.bands.push_back(band);
    }
  }
  EXPECT_TRUE(profile.Validate().ok());
  return profile;
}

void CheckPart(const PartLayout& layout, std::mt19937& random) {
  constexpr int kSegments = 3;
  std::normal_distribution<float> normal(0.5f, 2.0f);
  const size_t elements =
      static_cast<size_t>(layout.kv_heads) * layout.segment_tokens * layout.head_dim;
  std::vector<std::vector<std::byte>> payloads;
  std::vector<std::unique_ptr<OnDevice<std::byte>>> device_payloads;
  std::vector<std::unique_ptr<OnDevice<uint16_t>>> device_dense;
  std::vector<const uint8_t*> payload_pointers;
  std::vector<uint16_t*> dense_pointers;
  for (int s = 0; s < kSegments; ++s) {
    std::vector<uint16_t> dense(elements);
    for (uint16_t& x : dense) x = FloatToBf16(normal(random));
    payloads.emplace_back(layout.payload_bytes);
    reference::EncodePart(layout, KvDtype::kBf16, dense, payloads.back());
    device_payloads.push_back(std::make_unique<OnDevice<std::byte>>(payloads.back()));
    device_dense.push_back(
        std::make_unique<OnDevice<uint16_t>>(std::vector<uint16_t>(elements, 0x7fc0)));
    payload_pointers.push_back(reinterpret_cast<const uint8_t*>(device_payloads.back()->data()));
    dense_pointers.push_back(device_dense.back()->data());
  }

  std::vector<kernels::BandView> bands;
  std::vector<int32_t> head_bands = {0};
  for (const HeadLayout& head : layout.heads) {
    for (const BandLayout& band : head.bands) {
      bands.push_back({band.coefficients, band.bits, band.size,
                       static_cast<int32_t>(band.channels - layout.channels.data()),
                       band.scale_offset, band.zero_offset, band.data_offset});
    }
    head_bands.push_back(static_cast<int32_t>(bands.size()));
  }
  const Basis& basis = *layout.basis;
  const OnDevice<float> device_basis(std::vector<float>(
      basis.column(0), basis.column(0) + basis.columns() * basis.segment_tokens()));
  const OnDevice<kernels::BandView> device_bands(bands);
  const OnDevice<int32_t> device_head_bands(head_bands);
  const OnDevice<uint16_t> device_channels(layout.channels);
  const OnDevice<const uint8_t*> device_payload_table(payload_pointers);
  const OnDevice<uint16_t*> device_dense_table(dense_pointers);

  kernels::DecodeSegmentsParams params = {};
  params.part = {layout.kv_heads,          layout.head_dim,       layout.segment_tokens,
                 basis.columns(),          device_basis.data(),   device_bands.data(),
                 device_head_bands.data(), device_channels.data()};
  params.payloads = device_payload_table.data();
  params.dense = device_dense_table.data();
  params.segments = kSegments;
  ASSERT_EQ(kernels::LaunchDecodeSegments(params, nullptr), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);

  for (int s = 0; s < kSegments; ++s) {
    const std::vector<double> expected = reference::DecodePart(layout, payloads[s]);
    const std::vector<uint16_t> got = device_dense[s]->Read();
    for (size_t i = 0; i < elements; ++i) {
      // Half a unit in the last place of bf16, and float rounding of the sums.
      ASSERT_NEAR(Bf16ToFloat(got[i]), expected[i], std::fabs(expected[i]) / 250 + 1e-4)
          << "segment " << s << ", element " << i;
    }
  }
}

TEST_F(DecodeSegments, AgreesWithTheReferenceForEveryKindOfBand) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (const int head_dim : {8, 64, 80, 96, 128, 256}) {
    for (const int segment_tokens : {128, 256, 512, 1024}) {
      const ProfileLayout layout(RandomProfile({1, 3, head_dim}, segment_tokens, random));
      for (const Part part : kParts) CheckPart(layout.part(0, part), random);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(DecodeSegments, RefusesWhatItCannotRun) {
  kernels::DecodeSegmentsParams params = {};
  EXPECT_EQ(kernels::LaunchDecodeSegments(params, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace fourierkv
