// Tokens of models whose vocabulary is the bytes.

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "compute/model/model_config.h"

namespace fourierkv {

// One token per byte, its id the byte's value. Bytes above 127 become '?': the models that the
// project ships were taught ASCII.
std::vector<int32_t> EncodeBytes(absl::string_view text);

// The inverse. Ids above 255 (BOS, EOS, padding) give nothing.
std::string DecodeBytes(std::span<const int32_t> tokens);

// True if the model in `folder` takes bytes: a vocabulary of 256 to 512 and no tokenizer of its own
// (tokenizer.json or tokenizer.model) beside it.
bool IsByteLevel(const std::string& folder, const ModelConfig& config);

}  // namespace fourierkv
