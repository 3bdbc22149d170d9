// Whether two payloads of the same input are the same, as far as float arithmetic allows.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "compute/codec/segment_layout.h"

namespace fourierkv {

// Expects `got` to be what the float64 reference made of `dense` ([kv_heads][S][head_dim]), `want`:
//   - scales and offsets are the same bits, then integers within 1 and nearly all equal;
//   - or, in a few channels, a neighbouring or equally good grid: squared errors within 30%;
//   - bf16 values within one unit of their last place, or of float's rounding near zero.
void ExpectSamePayload(const ProfileLayout& layouts, Part part, KvDtype dtype,
                       const std::vector<uint16_t>& dense, const std::vector<std::byte>& got,
                       const std::vector<std::byte>& want);

// The units in the last place between two values of one dtype.
int UlpDistance(uint16_t a, uint16_t b);

}  // namespace fourierkv
