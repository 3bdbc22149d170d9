// Rotations of a head's channels: orthogonal matrices U, head_dim x head_dim, kept in 16 bits.
//
// K or V of a head, X [tokens][head_dim], is compressed as X U. Attention needs no X: scores are
// (q U) . (k U), and the output over V U is turned back with U^T once.

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

inline float RotationEntry(int16_t stored) { return static_cast<float>(stored) / 32767.0f; }

// Row-major U rounded to the stored form; entries are clamped to [-1, 1].
std::vector<int16_t> QuantizeRotation(std::span<const double> u);
std::vector<int16_t> QuantizeRotation(std::span<const float> u);

// InvalidArgument, saying what is wrong, unless `rotation` has head_dim * head_dim entries, every
// entry of U^T U is within 1e-3 of the identity's, and |U^T U - I| <= 1e-3 |I| (Frobenius). The
// second keeps the error of turning back with U^T far below any that compression makes; a rounded
// orthogonal matrix has 1e-5 and 2e-4.
absl::Status CheckRotation(std::span<const int16_t> rotation, int head_dim);

// Little-endian 16-bit values in base64: standard alphabet, padded, no white space.
std::string RotationToBase64(std::span<const int16_t> rotation);
// InvalidArgument for any other character, wrong padding, bits that no byte has, or half a value.
absl::StatusOr<std::vector<int16_t>> RotationFromBase64(absl::string_view text);
// How long the text of `values` values is.
constexpr size_t RotationBase64Size(size_t values) { return (2 * values + 2) / 3 * 4; }

}  // namespace fourierkv
