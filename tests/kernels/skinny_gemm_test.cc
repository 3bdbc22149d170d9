// Products of a matrix with few rows against float64. Needs a GPU; says so and skips without one.

#include "kernels/skinny_gemm.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "compute/backend/cuda/device_buffer.h"
#include "compute/base/bfloat16.h"

namespace fourierkv {
namespace {

using kernels::SkinnyGemmOutput;

class SkinnyGemm : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "NO GPU ON THIS MACHINE: the kernels were not run";
    }
  }
  std::vector<uint16_t> Bf16(size_t n, float deviation) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<uint16_t> values(n);
    for (uint16_t& value : values) value = FloatToBf16(normal(random_));
    return values;
  }
  template <typename T>
  DeviceBuffer ToDevice(const std::vector<T>& host) {
    auto buffer = DeviceBuffer::CopyOf(host.data(), host.size() * sizeof(T));
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return *std::move(buffer);
  }

  void Check(int64_t out, int64_t in, int rows, SkinnyGemmOutput output) {
    SCOPED_TRACE(testing::Message() << "out " << out << ", in " << in << ", rows " << rows
                                    << ", output " << static_cast<int>(output));
    const std::vector<uint16_t> w = Bf16(out * in, 0.05f), x = Bf16(rows * in, 1);
    const bool is_float =
        output == SkinnyGemmOutput::kFloat || output == SkinnyGemmOutput::kAddFloat;
    const bool silu = output == SkinnyGemmOutput::kSiluMul;
    const int64_t columns = silu ? out / 2 : out;
    std::vector<float> y(rows * columns, 0.5f);  // or twice as many bf16 values
    const DeviceBuffer d_w = ToDevice(w), d_x = ToDevice(x), d_y = ToDevice(y);
    kernels::SkinnyGemmParams params = {};
    params.w = d_w.as<uint16_t>();
    params.x = d_x.as<uint16_t>();
    params.y = d_y.data();
    params.out = out;
    params.in = in;
    params.rows = rows;
    params.output = output;
    ASSERT_EQ(kernels::LaunchSkinnyGemm(params, nullptr), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    std::vector<float> got(rows * columns);
    if (is_float) {
      ASSERT_TRUE(d_y.CopyTo(got.data(), got.size() * 4).ok());
    } else {
      std::vector<uint16_t> bits(got.size());
      ASSERT_TRUE(d_y.CopyTo(bits.data(), bits.size() * 2).ok());
      for (size_t i = 0; i < got.size(); ++i) got[i] = Bf16ToFloat(bits[i]);
    }
    const auto product = [&](int row, int64_t column) {
      double sum = 0;
      for (int64_t k = 0; k < in; ++k) {
        sum += static_cast<double>(Bf16ToFloat(w[column * in + k])) * Bf16ToFloat(x[row * in + k]);
      }
      return sum;
    };
    for (int row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        double expected = product(row, column);
        if (silu) expected *= product(row, column + columns) / (1 + std::exp(-expected));
        if (output == SkinnyGemmOutput::kAddFloat) expected += 0.5;
        const double tolerance = is_float ? 3e-4 : std::abs(expected) / 250 + 1e-3;
        ASSERT_NEAR(got[row * columns + column], expected, tolerance)
            << "row " << row << ", column " << column;
      }
    }
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 random_{seed_};
};

TEST_F(SkinnyGemm, EqualsFloat64ForEveryOutput) {
  for (const SkinnyGemmOutput output : {SkinnyGemmOutput::kBf16, SkinnyGemmOutput::kFloat,
                                        SkinnyGemmOutput::kAddFloat, SkinnyGemmOutput::kSiluMul}) {
    for (const int rows : {1, 7, 8, 15, 24, 25, 32}) {
      Check(64, 2048, rows, output);
      Check(32, 6144, rows, output);
    }
    Check(132 * 16 + 32, 2048, 3, output);  // more groups than an H200 has multiprocessors
    if (HasFatalFailure()) return;
  }
  Check(16, 4096, 1, SkinnyGemmOutput::kFloat);
  Check((2 * 132 + 3) * 16, 2048, 2, SkinnyGemmOutput::kFloat);  // an odd number of tiles
  Check((16 * 132 + 1) * 16, 2048, 1, SkinnyGemmOutput::kBf16);  // the last group has one tile
}

TEST_F(SkinnyGemm, RefusesWhatDoesNotFit) {
  const DeviceBuffer memory = ToDevice(std::vector<uint16_t>(1 << 16));
  kernels::SkinnyGemmParams good = {};
  good.w = good.x = memory.as<uint16_t>();
  good.y = memory.data();
  good.out = 16;
  good.in = 2048;
  good.rows = 1;
  good.output = SkinnyGemmOutput::kFloat;
  const auto refused = [&](auto change) {
    kernels::SkinnyGemmParams bad = good;
    change(bad);
    EXPECT_EQ(kernels::LaunchSkinnyGemm(bad, nullptr), cudaErrorInvalidValue);
  };
  refused([](auto& p) { p.w = nullptr; });
  refused([](auto& p) { p.x += 1; });
  refused([](auto& p) { p.y = nullptr; });
  refused([](auto& p) { p.out = 24; });
  refused([](auto& p) { p.in = 1024; });
  refused([](auto& p) { p.in = 0; });
  refused([](auto& p) { p.rows = 0; });
  refused([](auto& p) { p.rows = kernels::kSkinnyGemmRows + 1; });
  refused([](auto& p) { p.output = SkinnyGemmOutput::kSiluMul; });  // 16 outputs have no halves
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace
}  // namespace fourierkv
