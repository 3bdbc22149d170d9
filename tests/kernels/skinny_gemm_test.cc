// Products of few rows against float64. Needs a GPU of compute capability 9.0; says so and skips
// without one.

#include "kernels/skinny_gemm.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "compute/backend/cuda/device_buffer.h"
#include "compute/base/bfloat16.h"

namespace fourierkv {
namespace {

using kernels::SkinnyGemmOutput;

constexpr SkinnyGemmOutput kOutputs[] = {SkinnyGemmOutput::kBf16, SkinnyGemmOutput::kFloat,
                                         SkinnyGemmOutput::kAddFloat, SkinnyGemmOutput::kSiluMul};

std::vector<double> Doubles(const std::vector<uint16_t>& bits) {
  std::vector<double> values;
  values.reserve(bits.size());
  for (const uint16_t b : bits) values.push_back(Bf16ToFloat(b));
  return values;
}

class SkinnyGemm : public testing::Test {
 protected:
  // A product of random operands, on the device.
  struct Product {
    DeviceBuffer w, x, y;
    kernels::SkinnyGemmParams params = {};
    std::vector<uint16_t> host_w, host_x;

    bool IsFloat() const {
      return params.output == SkinnyGemmOutput::kFloat ||
             params.output == SkinnyGemmOutput::kAddFloat;
    }
    bool IsSilu() const { return params.output == SkinnyGemmOutput::kSiluMul; }
    int64_t columns() const { return IsSilu() ? params.out / 2 : params.out; }
  };

  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "NO GPU ON THIS MACHINE: the kernels were not run";
    }
    workspace_bytes_ = kernels::SkinnyGemmWorkspace();
    if (workspace_bytes_ == 0) GTEST_SKIP() << "NOT A GPU OF COMPUTE CAPABILITY 9.0: not run";
    workspace_ = ToDevice(std::vector<uint8_t>(workspace_bytes_));
  }

  std::vector<uint16_t> Bf16(size_t n, float deviation) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<uint16_t> values(n);
    for (uint16_t& value : values) value = FloatToBf16(normal(random_));
    return values;
  }
  template <typename T>
  static DeviceBuffer ToDevice(const std::vector<T>& host) {
    auto buffer = DeviceBuffer::CopyOf(host.data(), host.size() * sizeof(T));
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return *std::move(buffer);
  }

  Product MakeProduct(int64_t out, int64_t in, int rows, SkinnyGemmOutput output) {
    Product p;
    p.host_w = Bf16(out * in, 0.05f);
    p.host_x = Bf16(rows * in, 1);
    p.params = {nullptr, nullptr,           nullptr,         out, in, rows,
                output,  workspace_.data(), workspace_bytes_};
    p.w = ToDevice(p.host_w);
    p.x = ToDevice(p.host_x);
    // What kAddFloat adds to; one row more, which must stay as it is.
    p.y = ToDevice(std::vector<float>((rows + 1) * p.columns(), 0.5f));
    p.params.w = p.w.as<uint16_t>();
    p.params.x = p.x.as<uint16_t>();
    p.params.y = p.y.data();
    return p;
  }

  // y, and one row more.
  static std::vector<float> Result(const Product& p) {
    std::vector<float> y((p.params.rows + 1) * p.columns());
    if (p.IsFloat()) {
      EXPECT_TRUE(p.y.CopyTo(y.data(), y.size() * 4).ok());
    } else {
      std::vector<uint16_t> bits(y.size());
      EXPECT_TRUE(p.y.CopyTo(bits.data(), bits.size() * 2).ok());
      for (size_t i = 0; i < y.size(); ++i) y[i] = Bf16ToFloat(bits[i]);
    }
    return y;
  }

  void Check(int64_t out, int64_t in, int rows, SkinnyGemmOutput output) {
    SCOPED_TRACE(testing::Message() << "out " << out << ", in " << in << ", rows " << rows
                                    << ", output " << static_cast<int>(output));
    const Product p = MakeProduct(out, in, rows, output);
    ASSERT_EQ(kernels::LaunchSkinnyGemm(p.params, nullptr), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    ExpectProduct(p);
  }

  static void ExpectProduct(const Product& p) {
    const std::vector<float> got = Result(p);
    const std::vector<double> w = Doubles(p.host_w), x = Doubles(p.host_x);
    const int64_t in = p.params.in, columns = p.columns();
    const auto product = [&](int row, int64_t column) {
      double sum = 0;
      for (int64_t k = 0; k < in; ++k) sum += w[column * in + k] * x[row * in + k];
      return sum;
    };
    int wrong = 0;
    for (int row = 0; row < p.params.rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        double expected = product(row, column);
        if (p.IsSilu()) expected *= product(row, column + columns) / (1 + std::exp(-expected));
        if (p.params.output == SkinnyGemmOutput::kAddFloat) expected += 0.5;
        const double tolerance = p.IsFloat() ? 3e-4 : std::abs(expected) / 250 + 1e-3;
        const double value = got[row * columns + column];
        if (std::abs(value - expected) <= tolerance) continue;
        if (++wrong <= 5) {
          ADD_FAILURE() << "row " << row << ", column " << column << ": " << value << ", not "
                        << expected;
        }
      }
    }
    ASSERT_EQ(wrong, 0) << "of " << p.params.rows * columns;
    const float kept = p.IsFloat() ? 0.5f : Bf16ToFloat(0);  // bf16 halves of 0.5f
    for (int64_t column = 0; column < columns; ++column) {
      const float value = got[p.params.rows * columns + column];
      ASSERT_TRUE(value == 0.5f || value == kept) << "written behind the rows: " << column;
    }
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 random_{seed_};
  DeviceBuffer workspace_;
  int64_t workspace_bytes_ = 0;
};

TEST_F(SkinnyGemm, EqualsFloat64ForEveryOutput) {
  for (const SkinnyGemmOutput output : kOutputs) {
    for (const int rows : {1, 8, 24, 33}) {
      Check(128, 64, rows, output);
      Check(272, 200, rows, output);       // neither a whole tile nor a whole step at the end
      Check(4096, 1024 + 72, 3, output);   // every block has parts of several tiles
      Check(128, 64 * 150, rows, output);  // every block has parts of one tile
      if (HasFailure()) return;
    }
  }
}

TEST_F(SkinnyGemm, EqualsFloat64ForEveryNumberOfRows) {
  for (const int rows :
       {1, 2, 7, 9, 15, 16, 17, 23, 25, 31, 32, 40, 63, 47, kernels::kSkinnyGemmRows}) {
    Check(400, 1032, rows, SkinnyGemmOutput::kFloat);
    Check(400, 1032, rows, SkinnyGemmOutput::kSiluMul);
    if (HasFailure()) return;
  }
}

TEST_F(SkinnyGemm, EqualsFloat64ForTheSmallestAndForOddSizes) {
  Check(16, 8, 1, SkinnyGemmOutput::kFloat);
  Check(16, 8, 1, SkinnyGemmOutput::kSiluMul);
  Check(48, 72, 5, SkinnyGemmOutput::kSiluMul);
  for (int i = 0; i < 20; ++i) {
    const auto below = [&](int n) { return static_cast<int>(random_() % n); };
    const int64_t out = 16 * (1 + below(150)), in = 8 * (1 + below(200));
    Check(out, in, 1 + below(40), kOutputs[below(4)]);
    if (HasFailure()) return;
  }
}

TEST_F(SkinnyGemm, ProductsOneBehindTheOtherShareWorkspace) {
  std::vector<Product> products;
  for (const SkinnyGemmOutput output : kOutputs) {
    products.push_back(MakeProduct(1056, 1000, 24, output));
    products.push_back(MakeProduct(64, 4000, 9, output));
  }
  for (int round = 0; round < 10; ++round) {
    for (Product& p : products) {
      if (p.params.output == SkinnyGemmOutput::kAddFloat && round > 0) continue;
      ASSERT_EQ(kernels::LaunchSkinnyGemm(p.params, nullptr), cudaSuccess);
    }
  }
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (const Product& p : products) ExpectProduct(p);
}

TEST_F(SkinnyGemm, TheSameProductHasTheSameBits) {
  const Product p = MakeProduct(2064, 2048, 24, SkinnyGemmOutput::kFloat);
  std::vector<float> first;
  for (int round = 0; round < 20; ++round) {
    ASSERT_EQ(kernels::LaunchSkinnyGemm(p.params, nullptr), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    if (round == 0) first = Result(p);
    ASSERT_EQ(Result(p), first) << "round " << round;
  }
}

TEST_F(SkinnyGemm, RefusesWhatDoesNotFit) {
  const DeviceBuffer memory = ToDevice(std::vector<uint16_t>(1 << 16));
  const kernels::SkinnyGemmParams good = {
      memory.as<uint16_t>(),    memory.as<uint16_t>(), memory.data(),   16, 64, 1,
      SkinnyGemmOutput::kFloat, workspace_.data(),     workspace_bytes_};
  const auto refused = [&](auto change) {
    kernels::SkinnyGemmParams bad = good;
    change(bad);
    EXPECT_EQ(kernels::LaunchSkinnyGemm(bad, nullptr), cudaErrorInvalidValue);
  };
  refused([](auto& p) { p.w = nullptr; });
  refused([](auto& p) { p.x += 1; });
  refused([](auto& p) { p.y = nullptr; });
  refused([](auto& p) { p.workspace = nullptr; });
  refused([](auto& p) { --p.workspace_bytes; });
  refused([](auto& p) { p.out = 24; });
  refused([](auto& p) { p.out = 0; });
  refused([](auto& p) { p.out = int64_t{1} << 40; });
  refused([](auto& p) { p.in = 12; });
  refused([](auto& p) { p.in = 0; });
  refused([](auto& p) { p.in = int64_t{1} << 40; });
  refused([](auto& p) { p.rows = 0; });
  refused([](auto& p) { p.rows = kernels::kSkinnyGemmRows + 1; });
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace
}  // namespace fourierkv
