#include <cuda_bf16.h>

#include "kernels/decode_segments.h"

namespace fourierkv::kernels {
namespace {

constexpr int kThreads = 128;
constexpr int kTokensPerBlock = 128;  // divides every segment length

__device__ float LoadBf16(const uint8_t* payload, int64_t offset, int index) {
  const auto* values = reinterpret_cast<const __nv_bfloat16*>(payload + offset);
  return __bfloat162float(values[index]);
}

// Value of channel j of a band at token t.
__device__ float DecodeValue(const PartView& part, const BandView& band, const uint8_t* payload,
                             int j, int t) {
  const int tokens = part.segment_tokens;
  const uint8_t* data = payload + band.data_offset;
  if (band.coefficients > 0) {
    float sum = 0;
    for (int m = 0; m < band.coefficients; ++m) {
      const auto c = static_cast<int8_t>(data[static_cast<int64_t>(m) * band.size + j]);
      sum = fmaf(part.basis[static_cast<int64_t>(m) * tokens + t], static_cast<float>(c), sum);
    }
    return LoadBf16(payload, band.scale_offset, j) * sum;
  }
  if (band.bits == 16) {
    return LoadBf16(data, 0, j * tokens + t);
  }
  float code;
  if (band.bits == 8) {
    code = static_cast<float>(data[static_cast<int64_t>(j) * tokens + t]);
  } else {
    const int words = tokens / 8;
    const auto* word = reinterpret_cast<const uint32_t*>(data) + static_cast<int64_t>(j) * words;
    code = static_cast<float>((word[t % words] >> (4 * (t / words))) & 15u);
  }
  return fmaf(LoadBf16(payload, band.scale_offset, j), code,
              LoadBf16(payload, band.zero_offset, j));
}

// One block decodes kTokensPerBlock tokens of one head of one segment. Threads are tokens while
// reading, so that payload and basis are read along time, and channels while writing, so that rows
// are contiguous.
__global__ void DecodeSegmentsKernel(DecodeSegmentsParams params) {
  extern __shared__ __nv_bfloat16 tile[];  // [kTokensPerBlock][head_dim + 2]
  const PartView& part = params.part;
  const int head = blockIdx.y;
  const int first_token = blockIdx.x * kTokensPerBlock;
  const uint8_t* payload = params.payloads[blockIdx.z];
  const int row = part.head_dim + 2;  // an odd number of 4-byte words: no bank conflicts along time
  for (int b = part.head_bands[head]; b < part.head_bands[head + 1]; ++b) {
    const BandView& band = part.bands[b];
    for (int j = 0; j < band.size; ++j) {
      const float value = DecodeValue(part, band, payload, j, first_token + threadIdx.x);
      tile[threadIdx.x * row + part.channels[band.channels + j]] = __float2bfloat16_rn(value);
    }
  }
  __syncthreads();
  auto* out = reinterpret_cast<__nv_bfloat16*>(params.dense[blockIdx.z]) +
              (static_cast<int64_t>(head) * part.segment_tokens + first_token) * part.head_dim;
  for (int i = threadIdx.x; i < kTokensPerBlock * part.head_dim; i += kThreads) {
    out[i] = tile[i / part.head_dim * row + i % part.head_dim];
  }
}

bool Valid(const DecodeSegmentsParams& params) {
  const PartView& part = params.part;
  return params.segments >= 1 && params.segments <= 65535 && params.payloads != nullptr &&
         params.dense != nullptr && part.kv_heads >= 1 && part.kv_heads <= 256 &&
         part.head_dim >= 8 && part.head_dim <= 512 && part.head_dim % 8 == 0 &&
         part.segment_tokens >= kTokensPerBlock && part.segment_tokens <= 1024 &&
         part.segment_tokens % kTokensPerBlock == 0 && part.basis != nullptr &&
         part.bands != nullptr && part.head_bands != nullptr && part.channels != nullptr;
}

}  // namespace

cudaError_t LaunchDecodeSegments(const DecodeSegmentsParams& params, cudaStream_t stream) {
  static_assert(kThreads == kTokensPerBlock, "a thread decodes one token");
  if (!Valid(params)) return cudaErrorInvalidValue;
  const int shared = kTokensPerBlock * (params.part.head_dim + 2) * 2;
  const cudaError_t status = cudaFuncSetAttribute(
      DecodeSegmentsKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (status != cudaSuccess) return status;
  const dim3 grid(params.part.segment_tokens / kTokensPerBlock, params.part.kv_heads,
                  params.segments);
  DecodeSegmentsKernel<<<grid, kThreads, shared, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace fourierkv::kernels
