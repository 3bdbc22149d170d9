// What only the CUDA backend does.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>

#include "compute/base/bfloat16.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/compute/backend/backend_test_util.h"
#include "tests/compute/backend/backend_under_test.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST(CudaBackendCreation, SaysWhatItRunsOnOrWhatIsMissing) {
  int devices = 0;
  const bool any = cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
  const auto backend = CreateBackend("cuda", 1);
  if (any) {
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_THAT((*backend)->name(), StartsWith("cuda ("));
    return;
  }
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(backend.status().message()), HasSubstr("no GPU can be used"));
  EXPECT_THAT(std::string(backend.status().message()), HasSubstr("choose device cpu"));
}

class CudaBackend : public BackendTest {
 protected:
  const uint64_t seed_ = FreshSeed();
  std::mt19937_64 random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
};

// Pins what a vector holds.
template <typename T>
class Pinned {
 public:
  explicit Pinned(std::vector<T>& values) : data_(values.data()) {
    EXPECT_EQ(cudaHostRegister(data_, values.size() * sizeof(T), cudaHostRegisterDefault),
              cudaSuccess);
  }
  ~Pinned() { cudaHostUnregister(data_); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
  T* const data_;
};

TEST_F(CudaBackend, PinnedMemoryOfCallersGivesTheSame) {
  const CodecCase test = {.head_dim = 128, .kv_heads = 3};
  const auto layouts = RandomLayout(test, random_);
  const PartLayout& layout = layouts->part(0, Part::kK);
  const int64_t size = 256 * 128, stride = size + 128;
  std::vector<uint16_t> dense(3 * stride);
  const std::vector<uint16_t> values = RandomKv(3, 256, 128, test.dtype, random_);
  for (int h = 0; h < 3; ++h) {
    std::copy_n(values.begin() + h * size, size, dense.begin() + h * stride);
  }
  std::vector<std::byte> want(layout.payload_bytes), got(layout.payload_bytes);
  std::vector<uint16_t> want_dense(3 * stride, 0x1234), got_dense(3 * stride, 0x1234);
  EncodeJob encode{&layout, dense.data(), stride, want.data()};
  ASSERT_TRUE(backend_->Encode(test.dtype, {&encode, 1}).ok());
  DecodeJob decode{&layout, want.data(), want_dense.data(), stride};
  ASSERT_TRUE(backend_->Decode(test.dtype, {&decode, 1}).ok());

  const Pinned pin_dense(dense);
  const Pinned pin_payload(got);
  const Pinned pin_decoded(got_dense);
  encode.payload = got.data();
  ASSERT_TRUE(backend_->Encode(test.dtype, {&encode, 1}).ok());
  EXPECT_EQ(got, want);
  decode = {&layout, got.data(), got_dense.data(), stride};
  ASSERT_TRUE(backend_->Decode(test.dtype, {&decode, 1}).ok());
  EXPECT_EQ(got_dense, want_dense);
}

TEST_F(CudaBackend, MoreJobsThanFitIntoOneCopy) {
  const CodecCase test = {.head_dim = 128, .kv_heads = 8};
  const auto layouts = RandomLayout(test, random_);
  const int64_t size = 256 * 128;
  constexpr int kJobs = 150;  // of half a megabyte
  std::vector<std::vector<uint16_t>> dense;
  for (int i = 0; i < 7; ++i) dense.push_back(RandomKv(8, 256, 128, test.dtype, random_));
  std::vector<std::vector<std::byte>> payloads(kJobs);
  std::vector<EncodeJob> jobs;
  for (int i = 0; i < kJobs; ++i) {
    const PartLayout& layout = layouts->part(0, kParts[i % 2]);
    payloads[i].resize(layout.payload_bytes);
    jobs.push_back({&layout, dense[i % 7].data(), size, payloads[i].data()});
  }
  ASSERT_TRUE(backend_->Encode(test.dtype, jobs).ok());
  for (int i = 14; i < kJobs; ++i) {
    ASSERT_EQ(payloads[i], payloads[i % 14]) << i;
    ASSERT_EQ(jobs[i].relative_error, jobs[i % 14].relative_error) << i;
  }
  std::vector<std::vector<uint16_t>> decoded(kJobs);
  std::vector<DecodeJob> decode;
  for (int i = 0; i < kJobs; ++i) {
    decoded[i].resize(dense[0].size());
    decode.push_back({jobs[i].layout, payloads[i].data(), decoded[i].data(), size});
  }
  ASSERT_TRUE(backend_->Decode(test.dtype, decode).ok());
  for (int i = 0; i < 14; ++i) {
    double error = 0, norm = 0;
    for (size_t j = 0; j < decoded[i].size(); ++j) {
      const double want = Bf16ToFloat(dense[i % 7][j]);
      error += (Bf16ToFloat(decoded[i][j]) - want) * (Bf16ToFloat(decoded[i][j]) - want);
      norm += want * want;
    }
    EXPECT_NEAR(std::sqrt(error / norm), jobs[i].relative_error, 3e-3);
  }
  for (int i = 14; i < kJobs; ++i) ASSERT_EQ(decoded[i], decoded[i % 14]) << i;
}

TEST_F(CudaBackend, TooLittleDeviceMemoryIsSaidAndSurvived) {
  const CodecCase test = {.head_dim = 128, .kv_heads = 8};
  const auto layouts = RandomLayout(test, random_);
  const PartLayout& layout = layouts->part(0, Part::kK);
  const std::vector<uint16_t> dense = RandomKv(8, 256, 128, test.dtype, random_);
  std::vector<std::vector<std::byte>> payloads(32);
  std::vector<EncodeJob> jobs;
  for (auto& payload : payloads) {
    payload.resize(layout.payload_bytes);
    jobs.push_back({&layout, dense.data(), 256 * 128, payload.data()});
  }
  // Takes all there is, in pieces that get smaller.
  std::vector<void*> taken;
  for (size_t piece = size_t{1} << 36; piece >= size_t{1} << 20;) {
    void* memory = nullptr;
    if (cudaMalloc(&memory, piece) == cudaSuccess) {
      taken.push_back(memory);
    } else {
      cudaGetLastError();
      piece /= 2;
    }
  }
  const absl::Status status = backend_->Encode(test.dtype, jobs);
  for (void* memory : taken) cudaFree(memory);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("bytes of device memory"));
  const absl::Status after = backend_->Encode(test.dtype, jobs);
  EXPECT_TRUE(after.ok()) << after;
}

}  // namespace
}  // namespace fourierkv
