// The codec in float64, written for clarity: what every backend is compared with.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "compute/base/geometry.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv::reference {

// dense: [kv_heads][S][head_dim]. payload: layout.payload_bytes. Returns the relative error.
double EncodePart(const PartLayout& layout, KvDtype dtype, std::span<const uint16_t> dense,
                  std::span<std::byte> payload);

// The exact meaning of a payload: [kv_heads][S][head_dim] in float64.
std::vector<double> DecodePart(const PartLayout& layout, std::span<const std::byte> payload);

// Softmax attention in float64 over dense keys and values of one KV head.
//   q: [queries][head_dim]; k, v: [tokens][head_dim]; out: [queries][head_dim]; lse: [queries] or
//   empty.
void Attend(std::span<const double> q, std::span<const double> k, std::span<const double> v,
            int queries, int64_t tokens, int head_dim, double scale, std::span<double> out,
            std::span<double> lse);

}  // namespace fourierkv::reference
