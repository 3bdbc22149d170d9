// Token ids from the wire.

#pragma once

#include <google/protobuf/repeated_field.h>

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "compute/model/model_config.h"

namespace fourierkv {

// InvalidArgument for none or for ids outside the vocabulary; OutOfRange if `extra` more do not fit
// into the model's context.
inline absl::StatusOr<std::vector<int32_t>> ParseTokenIds(
    const google::protobuf::RepeatedField<uint32_t>& ids, const ModelConfig& config,
    int64_t extra) {
  if (ids.empty()) return absl::InvalidArgumentError("token_ids is empty");
  if (ids.size() + extra > config.max_position_embeddings) {
    return absl::OutOfRangeError(absl::StrCat("token_ids has ", ids.size(), " tokens, and ", extra,
                                              " more are asked for; the model's context is ",
                                              config.max_position_embeddings));
  }
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= static_cast<uint32_t>(config.vocab_size)) {
      return absl::InvalidArgumentError(absl::StrCat("token_ids[", i, "] is ", ids[i],
                                                     "; the vocabulary has ", config.vocab_size));
    }
  }
  return std::vector<int32_t>(ids.begin(), ids.end());
}

}  // namespace fourierkv
