// The codec in float64, written for clarity: what every backend is compared with.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "compute/base/geometry.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv::reference {

// dense: [kv_heads][S][head_dim], finite and within +-1e30. payload: layout.payload_bytes, all of
// which is written. Returns the relative error ||X - X^||_F / ||X||_F over all heads; 0 if X is 0.
double EncodePart(const PartLayout& layout, KvDtype dtype, std::span<const uint16_t> dense,
                  std::span<std::byte> payload);

// The exact meaning of a payload: [kv_heads][S][head_dim] in float64.
std::vector<double> DecodePart(const PartLayout& layout, std::span<const std::byte> payload);

// Softmax attention in float64 over dense keys and values of one KV head.
//   q: [queries][head_dim]; k, v: [tokens][head_dim]; out: [queries][head_dim]; lse: [queries] or
//   empty. Without tokens, out is 0 and lse is minus infinity.
void Attend(std::span<const double> q, std::span<const double> k, std::span<const double> v,
            int queries, int64_t tokens, int head_dim, double scale, std::span<double> out,
            std::span<double> lse);

}  // namespace fourierkv::reference
