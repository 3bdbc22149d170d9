#include "compute/model/byte_tokenizer.h"

#include <filesystem>

namespace fourierkv {

std::vector<int32_t> EncodeBytes(absl::string_view text) {
  std::vector<int32_t> tokens;
  tokens.reserve(text.size());
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    tokens.push_back(byte > 127 ? '?' : byte);
  }
  return tokens;
}

std::string DecodeBytes(std::span<const int32_t> tokens) {
  std::string text;
  text.reserve(tokens.size());
  for (int32_t token : tokens) {
    if (token >= 0 && token < 256) text.push_back(static_cast<char>(token));
  }
  return text;
}

bool IsByteLevel(const std::string& folder, const ModelConfig& config) {
  if (config.vocab_size < 256 || config.vocab_size > 512) return false;
  std::error_code error;  // what cannot be seen does not exist
  const std::filesystem::path path(folder);
  return !std::filesystem::exists(path / "tokenizer.json", error) &&
         !std::filesystem::exists(path / "tokenizer.model", error);
}

}  // namespace fourierkv
