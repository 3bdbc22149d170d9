// Which grids the encoder may choose from for a resident channel's integers, as constants that
// device code can read. The same numbers as compute/codec/quantiser_grid.h, which kernels may not
// include.

#pragma once

#include <cuda_runtime_api.h>

namespace fourierkv::kernels {

// How many grids are tried for integers of `bits` bits; GridTrim() says which.
__host__ __device__ constexpr int GridTrimCount(int bits) { return bits == 2 || bits == 3 ? 4 : 1; }

// What fraction of the range grid number i leaves out at both ends.
__host__ __device__ constexpr double GridTrim(int bits, int i) {
  if (bits == 2) return i == 0 ? 0 : i == 1 ? 0.1 : i == 2 ? 0.2 : 0.3;
  if (bits == 3) return i == 0 ? 0 : i == 1 ? 0.05 : i == 2 ? 0.1 : 0.175;
  return 0;
}

}  // namespace fourierkv::kernels
