// The elementwise loops of the archive codec, vectorised.

#pragma once

#include <cstdint>

#include "compute/base/geometry.h"

namespace fourierkv::archive {

// Converts n values to float. Returns the largest magnitude's bits (value & 0x7fff).
uint16_t Widen(KvDtype dtype, const uint16_t* from, int64_t n, float* to);

// Converts n floats, rounding to nearest even. fp16 is held within its largest finite value.
void Narrow(KvDtype dtype, const float* from, int64_t n, uint16_t* to);

// Turns the pairs (d, d + half) of rows x [tokens][2 * half] by angles whose cos and sin are
// [tokens][half], or by their negatives.
void Turn(const float* cos, const float* sin, int64_t tokens, int half, bool back, float* x);

// to = sign(y) * floor(|y| + rounding), rounding < 1. False if any |y| is not below 32767; what is
// written is meaningless then.
bool Quantize(const float* y, int64_t n, float rounding, int16_t* to);

double SumOfSquares(const float* x, int64_t n);
// sum (y - q)^2
double SquaredDifference(const float* y, const int16_t* q, int64_t n);
// to = y - q
void Subtract(const float* y, const int16_t* q, int64_t n, float* to);
void ToFloat(const int16_t* q, int64_t n, float* to);
bool AllZero(const int16_t* q, int64_t n);
// to = min(|q|, 2)
void ClampedMagnitudes(const int16_t* q, int64_t n, uint8_t* to);

}  // namespace fourierkv::archive
