#include "compute/codec/archive_profile.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "compute/base/bfloat16.h"
#include "compute/codec/archive_symbols.h"
#include "compute/codec/range_coder.h"
#include "compute/codec/rotation.h"

namespace fourierkv {
namespace {

constexpr float kLargest = 0x1p20f;
constexpr float kSmallest = 0x1p-20f;
constexpr double kMostRadians = 4;

// What is wrong with bf16 `values` that must be from `low` to kLargest, or nothing.
std::string Fault(const std::vector<uint16_t>& values, int head_dim, float low) {
  if (values.size() != head_dim) {
    return absl::StrCat(" has ", values.size(), " entries; it must have head_dim = ", head_dim);
  }
  for (size_t d = 0; d < values.size(); ++d) {
    const float value = Bf16ToFloat(values[d]);
    if (!(value >= low && value <= kLargest)) {
      return absl::StrCat("[", d, "] is ", value, "; it must be from ", low, " to ", kLargest);
    }
  }
  return "";
}

std::string Fault(const ArchiveHead& head, int head_dim) {
  if (!head.rotation.empty()) {
    if (auto s = CheckRotation(head.rotation, head_dim); !s.ok()) {
      return absl::StrCat(".", s.message());
    }
  }
  if (std::string fault = Fault(head.mean, head_dim, -kLargest); !fault.empty()) {
    return ".mean" + fault;
  }
  if (!head.scale.empty()) {
    if (std::string fault = Fault(head.scale, head_dim, kSmallest); !fault.empty()) {
      return ".scale" + fault;
    }
  }
  if (std::string fault = Fault(head.step, head_dim, kSmallest); !fault.empty()) {
    return ".step" + fault;
  }
  const int classes = head_dim * kArchiveOctaves;
  if (head.classes.size() != classes) {
    return absl::StrCat(".classes has ", head.classes.size(), " entries; it must have ", classes);
  }
  for (size_t i = 0; i < head.classes.size(); ++i) {
    if (head.classes[i] >= kArchiveClasses) {
      return absl::StrCat(".classes[", i, "] is ", int{head.classes[i]}, "; it must be below ",
                          kArchiveClasses);
    }
  }
  return "";
}

}  // namespace

absl::Status ArchiveProfile::Validate(const KvGeometry& geometry) const {
  const auto error = [](const auto&... text) {
    return absl::InvalidArgumentError(absl::StrCat("archive.", text...));
  };
  if (rounding < 1 || rounding > 128) {
    return error("rounding is ", rounding, "; it must be 1 to 128");
  }
  if (rope_frequencies.size() != geometry.head_dim / 2) {
    return error("rope_frequencies has ", rope_frequencies.size(),
                 " entries; it must have head_dim / 2 = ", geometry.head_dim / 2);
  }
  for (size_t d = 0; d < rope_frequencies.size(); ++d) {
    if (!(rope_frequencies[d] >= 0 && rope_frequencies[d] <= kMostRadians)) {
      return error("rope_frequencies[", d, "] is ", rope_frequencies[d], "; it must be from 0 to ",
                   kMostRadians);
    }
  }
  if (probabilities.size() != 2 * kArchiveContexts) {
    return error("probabilities has ", probabilities.size(), " entries; it must have ",
                 2 * kArchiveContexts);
  }
  for (size_t i = 0; i < probabilities.size(); ++i) {
    if (probabilities[i] < AdaptiveBit::kLow || probabilities[i] > AdaptiveBit::kHigh) {
      return error("probabilities[", i, "] is ", probabilities[i], "; it must be from ",
                   AdaptiveBit::kLow, " to ", AdaptiveBit::kHigh);
    }
  }
  const size_t expected = size_t{2} * geometry.layers * geometry.kv_heads;
  if (heads.size() != expected) {
    return error("layers hold ", heads.size(), " heads; the geometry needs ", expected,
                 " (K and V)");
  }
  for (int layer = 0; layer < geometry.layers; ++layer) {
    for (Part part : kParts) {
      for (int h = 0; h < geometry.kv_heads; ++h) {
        const std::string fault = Fault(head(geometry, layer, h, part), geometry.head_dim);
        if (fault.empty()) continue;
        return error("layers[", layer, "].", part == Part::kK ? "k[" : "v[", h, "]", fault);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
