// What the KV tensors of one model (or one tensor-parallel shard of it) look like.

#pragma once

#include <cstdint>

#include "absl/status/status.h"

namespace fourierkv {

// Element type of KV tensors as the prefill worker produced them. Values are stored in blob
// headers.
enum class KvDtype : uint8_t { kBf16 = 1, kFp16 = 2 };

inline constexpr int kKvDtypeBytes = 2;

// K or V. Values are stored in blob headers.
enum class Part : uint8_t { kK = 0, kV = 1 };

inline constexpr Part kParts[] = {Part::kK, Part::kV};

inline const char* PartName(Part part) { return part == Part::kK ? "K" : "V"; }

struct KvGeometry {
  int layers = 0;
  int kv_heads = 0;
  int head_dim = 0;

  bool operator==(const KvGeometry&) const = default;

  // Bytes of K or of V of one layer for `tokens` tokens, dense.
  int64_t PartBytes(int64_t tokens) const { return tokens * kv_heads * head_dim * kKvDtypeBytes; }
  // Bytes of K and V of all layers for `tokens` tokens, dense.
  int64_t DenseBytes(int64_t tokens) const { return 2 * layers * PartBytes(tokens); }

  // InvalidArgument, naming the field, unless 1 <= layers <= 512, 1 <= kv_heads <= 256,
  // 8 <= head_dim <= 512 and head_dim is a multiple of 8.
  absl::Status Validate() const;
};

}  // namespace fourierkv
