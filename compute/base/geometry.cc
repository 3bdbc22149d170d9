#include "compute/base/geometry.h"

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

absl::Status CheckRange(const char* field, int value, int low, int high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("geometry.", field, " is ", value, "; it must be from ", low, " to ", high));
}

}  // namespace

absl::Status KvGeometry::Validate() const {
  if (auto s = CheckRange("layers", layers, 1, 512); !s.ok()) return s;
  if (auto s = CheckRange("kv_heads", kv_heads, 1, 256); !s.ok()) return s;
  if (auto s = CheckRange("head_dim", head_dim, 8, 512); !s.ok()) return s;
  if (head_dim % 8 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("geometry.head_dim is ", head_dim, "; it must be a multiple of 8"));
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
