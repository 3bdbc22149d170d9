// Reads the lists of compressed channels that FourierAttention's authors publish.

#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compute/base/geometry.h"
#include "compute/codec/profile.h"

namespace fourierkv {

struct ImportOptions {
  std::string name;           // of the profile
  SequenceScope scope = {};   // the published one
  int coefficient_bits = 16;  // 16 or 32
};

// The profile that `json`, the text of a compressed_dims*.json, describes for a model of
// `geometry`. Channels are numbered over the heads of a layer: head * head_dim + d. For each
// "Layer_<i>" there is either
//   kc_list, kn_list, vc_list, vn_list     compressed ("c") and other ("n") channels of K and V
//   kc_h_list, ... (all four or none)      where each head's entries end in those lists
// or the older form, what the authors' search writes,
//   self_attn.k_proj, self_attn.v_proj     compressed channels, in any order; the rest is not
//
// InvalidArgument, naming layer, list and entry, for text of more than 16 MiB, that is no JSON, has
// unknown keys, misses layers or has too many, or whose lists are not the channels of the geometry,
// each once.
absl::StatusOr<CodecProfile> ImportCompressedDims(absl::string_view json,
                                                  const KvGeometry& geometry,
                                                  const ImportOptions& options);

}  // namespace fourierkv
