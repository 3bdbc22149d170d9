// Speed of the GPU's encoder and decoder of compact segments beside a copy of the same memory in
// the same run. Every launch works on a layer of many segments, far more than the second-level
// cache holds. JSON goes to standard output, progress to standard error.

#include <cuda_runtime_api.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_buffer.h"
#include "compute/backend/cuda/device_layout.h"
#include "compute/codec/segment_layout.h"
#include "kernels/decode_segments.h"
#include "kernels/encode_segments.h"
#include "kernels/random_fill.h"
#include "tests/bench/gpu_probes.h"
#include "tests/bench/gpu_timing.h"
#include "tests/compute/codec/random_codec_input.h"

namespace fourierkv {
namespace {

struct Options {
  int segments = 512;
  int kv_heads = 8;
  int head_dim = 128;
  int segment_tokens = 256;
  int repeat = 50;
  bool once = false;
  uint64_t seed = 1;
};

struct Profile {
  const char* name;
  double k_spectral;
  double v_spectral;
  int coefficients;
  int resident_bits;
  bool rotate_v;
};

// 0.8125 and 0.5 of 128 channels are 104 and 64.
constexpr Profile kProfiles[] = {
    {"9.7x: K 81% V 50% spectral, int4", 0.8125, 0.5, 8, 4, false},
    {"all resident, int8", 0, 0, 8, 8, false},
    {"K 80% V 80% spectral, int4", 0.8, 0.8, 8, 4, false},
    {"15x: K 80% V rotated 80% spectral, int4", 0.8, 0.8, 8, 4, true},
};

[[noreturn]] void Fail(const std::string& why) {
  std::cerr << "gpu_codec_bench: " << why << "\n";
  std::exit(1);
}

template <typename T>
T Require(absl::StatusOr<T> value) {
  if (!value.ok()) Fail(std::string(value.status().message()));
  return *std::move(value);
}

void Require(cudaError_t error, const char* doing) {
  if (error != cudaSuccess) Fail(std::string(CudaStatus(error, doing).message()));
}

// Addresses of `count` pieces of `size` bytes of a buffer, in device memory.
DeviceBuffer AddressTable(const DeviceBuffer& buffer, int count, int64_t size) {
  std::vector<std::byte*> addresses;
  for (int i = 0; i < count; ++i) addresses.push_back(buffer.data() + i * size);
  return Require(DeviceBuffer::CopyOf(addresses.data(), addresses.size() * sizeof(addresses[0])));
}

class CodecBench {
 public:
  explicit CodecBench(const Options& options)
      : options_(options),
        head_size_(int64_t{options.segment_tokens} * options.head_dim),
        segment_bytes_(2 * head_size_ * options.kv_heads),
        dense_bytes_(segment_bytes_ * options.segments),
        dense_(Require(DeviceBuffer::Create(dense_bytes_))),
        decoded_(Require(DeviceBuffer::Create(dense_bytes_))),
        dense_table_(AddressTable(dense_, options.segments, segment_bytes_)),
        decoded_table_(AddressTable(decoded_, options.segments, segment_bytes_)) {
    Require(kernels::LaunchFillRandom(dense_.as<uint16_t>(), dense_bytes_ / 2, 1.0f, options.seed,
                                      nullptr),
            "filling the input");
    Require(cudaDeviceSynchronize(), "filling the input");
  }

  nlohmann::json Run() {
    nlohmann::json report;
    cudaDeviceProp properties;
    Require(cudaGetDeviceProperties(&properties, 0), "asking for the GPU's name");
    report["gpu"] = properties.name;
    report["shape"] = {{"segments", options_.segments},
                       {"kv_heads", options_.kv_heads},
                       {"head_dim", options_.head_dim},
                       {"segment_tokens", options_.segment_tokens}};
    report["dense_bytes"] = dense_bytes_;
    report["copy"] = MeasureCopy();
    for (const Profile& profile : kProfiles) report["profiles"].push_back(Measure(profile));
    return report;
  }

 private:
  double Microseconds(const EnqueueLaunch& launch) const {
    if (options_.once) {
      return Require(
          Elapsed(nullptr, [&launch](cudaStream_t stream) { return launch(0, stream); }));
    }
    return Require(TimeLaunches(launch, 1, options_.repeat)).graph_us;
  }

  nlohmann::json MeasureCopy() {
    std::cerr << "gpu_codec_bench: copy\n";
    const double us = Microseconds([this](int64_t, cudaStream_t stream) {
      return LaunchCopyProbe(decoded_.data(), dense_.data(), dense_bytes_, stream);
    });
    copy_tb_per_s_ = 2.0 * dense_bytes_ / us / 1e6;  // read and written
    return {{"microseconds", us}, {"tb_per_s", copy_tb_per_s_}};
  }

  nlohmann::json Measure(const Profile& profile) {
    std::cerr << "gpu_codec_bench: " << profile.name << "\n";
    CodecProfile codec =
        UniformProfile({1, options_.kv_heads, options_.head_dim}, profile.k_spectral,
                       profile.v_spectral, profile.coefficients, profile.resident_bits);
    codec.segment_tokens = options_.segment_tokens;
    std::mt19937_64 random(options_.seed);
    for (int h = 0; profile.rotate_v && h < options_.kv_heads; ++h) {
      codec.head(0, h, Part::kV).rotation = RandomRotation(random, options_.head_dim);
    }
    if (const absl::Status valid = codec.Validate(); !valid.ok()) Fail(valid.ToString());
    const ProfileLayout layouts(codec);
    nlohmann::json result = {{"name", profile.name},
                             {"bits_per_element", layouts.BitsPerElement()}};
    result["k"] = MeasurePart(layouts.part(0, Part::kK));
    result["v"] = MeasurePart(layouts.part(0, Part::kV));
    for (const char* what : {"encode", "decode"}) {
      const double us = result["k"][what]["microseconds"].get<double>() +
                        result["v"][what]["microseconds"].get<double>();
      result[what] = Speed(us, 2);
    }
    return result;
  }

  // Of `parts` times the dense bytes.
  nlohmann::json Speed(double us, int parts) const {
    const double tb_per_s = static_cast<double>(dense_bytes_) * parts / us / 1e6;
    return {{"microseconds", us},
            {"dense_tb_per_s", tb_per_s},
            {"fraction_of_copy", tb_per_s / copy_tb_per_s_}};
  }

  nlohmann::json MeasurePart(const PartLayout& layout) {
    const DevicePart part = Require(DevicePart::Create(layout));
    const DeviceBuffer payloads =
        Require(DeviceBuffer::Create(layout.payload_bytes * options_.segments));
    const DeviceBuffer payload_table =
        AddressTable(payloads, options_.segments, layout.payload_bytes);
    std::vector<kernels::EncodeReport> reports(options_.segments);
    const DeviceBuffer device_reports =
        Require(DeviceBuffer::Create(reports.size() * sizeof(reports[0])));
    const DeviceBuffer workspace = Require(
        DeviceBuffer::Create(kernels::EncodeSegmentsWorkspace(part.view(), options_.segments)));

    kernels::EncodeSegmentsParams encode = {};
    encode.part = part.view();
    encode.dense = dense_table_.as<const uint16_t* const>();
    encode.head_stride = head_size_;
    encode.dtype = kernels::ElementType::kBf16;
    encode.payloads = payload_table.as<uint8_t* const>();
    encode.payload_bytes = layout.payload_bytes;
    encode.reports = device_reports.as<kernels::EncodeReport>();
    encode.workspace = workspace.data();
    encode.segments = options_.segments;
    kernels::DecodeSegmentsParams decode = {};
    decode.part = part.view();
    decode.payloads = payload_table.as<const uint8_t* const>();
    decode.dense = decoded_table_.as<uint16_t* const>();
    decode.head_stride = head_size_;
    decode.dtype = kernels::ElementType::kBf16;
    decode.segments = options_.segments;

    nlohmann::json result;
    result["payload_bytes"] = layout.payload_bytes * options_.segments;
    result["encode"] = Speed(Microseconds([&encode](int64_t, cudaStream_t stream) {
                               return kernels::LaunchEncodeSegments(encode, stream);
                             }),
                             1);
    result["decode"] = Speed(Microseconds([&decode](int64_t, cudaStream_t stream) {
                               return kernels::LaunchDecodeSegments(decode, stream);
                             }),
                             1);
    const absl::Status copied = device_reports.CopyTo(reports.data(), device_reports.size());
    if (!copied.ok()) Fail(copied.ToString());
    for (const kernels::EncodeReport& report : reports) {
      if (report.refused != 0) Fail("the encoder refused finite input");
    }
    result["relative_error"] = reports[0].relative_error;
    return result;
  }

  const Options options_;
  const int64_t head_size_;
  const int64_t segment_bytes_;
  const int64_t dense_bytes_;
  const DeviceBuffer dense_, decoded_, dense_table_, decoded_table_;
  double copy_tb_per_s_ = 0;
};

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) {
  fourierkv::Options options;
  CLI::App app("Speed of the GPU's encoder and decoder of compact segments, as JSON");
  app.add_option("--segments", options.segments, "of a launch")
      ->check(CLI::Range(1, 65535))
      ->capture_default_str();
  app.add_option("--kv-heads", options.kv_heads)->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--head-dim", options.head_dim)->check(CLI::Range(8, 512))->capture_default_str();
  app.add_option("--segment-tokens", options.segment_tokens)
      ->check(CLI::IsMember({128, 256, 512, 1024}))
      ->capture_default_str();
  app.add_option("--repeat", options.repeat, "most runs that the median is of")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--once", options.once, "every launch once, without warming up: for profilers");
  app.add_option("--seed", options.seed)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (options.head_dim % 8 != 0) fourierkv::Fail("--head-dim must be a multiple of 8");
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    fourierkv::Fail("there is no GPU that the CUDA runtime can use on this machine");
  }
  std::cout << fourierkv::CodecBench(options).Run().dump(2) << "\n";
  return 0;
}
