#include "tests/bench/gpu_attention_cases.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "tests/compute/codec/random_codec_input.h"

namespace fourierkv {
namespace {

constexpr char kExactSuffix[] = "+exact";
constexpr int64_t kExactTokens = kBenchSinkTokens + kBenchRecentTokens;
constexpr int64_t kMostTokensInAll = int64_t{1} << 28;

void SetSpectralBits(int bits, CodecProfile* profile) {
  for (HeadProfile& head : profile->heads) {
    for (Band& band : head.bands) {
      if (band.spectral()) band.bits = bits;
    }
  }
}

void RotateV(CodecProfile* profile) {
  std::mt19937_64 random(0);  // what the matrix is does not matter
  for (int h = 0; h < kBenchKvHeads; ++h) {
    profile->head(0, h, Part::kV).rotation = RandomRotation(random, kBenchHeadDim);
  }
}

// "32k" or "4096"; false if it is neither.
bool ParseTokens(absl::string_view text, int* tokens) {
  const int unit = absl::ConsumeSuffix(&text, "k") ? 1024 : 1;
  return absl::SimpleAtoi(text, tokens) && *tokens >= 1 && *tokens <= (1 << 20) / unit &&
         (*tokens *= unit) > 0;
}

std::string NoProfile(absl::string_view name) {
  return absl::StrCat("no profile '", name, "': there are ",
                      absl::StrJoin(AttentionProfileNames(), ", "), " and ", kPlainDense);
}

absl::Status BadCase(absl::string_view text, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("case '", text, "': ", why, "; cases are like 32x32k:int4-9.7x+exact, which is ",
                   "BATCHxTOKENS:PROFILE, with sink and recent window exact"));
}

}  // namespace

std::string AttentionCase::Name() const {
  const std::string size =
      tokens % 1024 == 0 ? absl::StrCat(tokens / 1024, "k") : absl::StrCat(tokens);
  return absl::StrCat(batch, "x", size, ":", profile, exact ? kExactSuffix : "");
}

int64_t AttentionCase::segments() const {
  if (profile == kPlainDense) return 0;
  return (tokens - (exact ? kExactTokens : 0)) / kBenchSegmentTokens;
}

int64_t AttentionCase::pages() const {
  return (tokens - segments() * kBenchSegmentTokens) / kBenchPageTokens;
}

int64_t AttentionCase::DenseBytes() const {
  return int64_t{batch} * tokens * kBenchKvHeads * kBenchHeadDim * 2 * kKvDtypeBytes;
}

const std::vector<std::string>& AttentionProfileNames() {
  static const auto* const names =
      new std::vector<std::string>{"bf16", "int8", "int4-9.7x", "int4-15x"};
  return *names;
}

absl::StatusOr<CodecProfile> AttentionProfile(absl::string_view name) {
  const KvGeometry geometry = {.layers = 1, .kv_heads = kBenchKvHeads, .head_dim = kBenchHeadDim};
  constexpr int kCoefficients = 8;
  CodecProfile profile;
  if (name == "bf16") {
    profile = UniformProfile(geometry, 0.8, 0.8, kCoefficients, 16);
    SetSpectralBits(16, &profile);
  } else if (name == "int8") {
    profile = UniformProfile(geometry, 0.8, 0.8, kCoefficients, 8);
  } else if (name == "int4-9.7x") {
    profile = UniformProfile(geometry, 0.8, 0.5, kCoefficients, 4);
  } else if (name == "int4-15x") {
    profile = UniformProfile(geometry, 0.8, 0.8, kCoefficients, 4);
    RotateV(&profile);
  } else {
    return absl::NotFoundError(NoProfile(name));
  }
  profile.segment_tokens = kBenchSegmentTokens;
  return profile;
}

absl::StatusOr<AttentionCase> ParseAttentionCase(absl::string_view text) {
  const std::pair<absl::string_view, absl::string_view> halves =
      absl::StrSplit(text, absl::MaxSplits(':', 1));
  const std::pair<absl::string_view, absl::string_view> size =
      absl::StrSplit(halves.first, absl::MaxSplits('x', 1));
  AttentionCase result;
  if (!absl::SimpleAtoi(size.first, &result.batch) || result.batch < 1 || result.batch > 4096) {
    return BadCase(text, "the batch must be from 1 to 4096");
  }
  if (!ParseTokens(size.second, &result.tokens) || result.tokens % kBenchSegmentTokens != 0) {
    return BadCase(
        text, absl::StrCat("tokens must be a multiple of ", kBenchSegmentTokens, " up to 1024k"));
  }
  if (int64_t{result.batch} * result.tokens > kMostTokensInAll) {
    return BadCase(text, absl::StrCat("more than ", kMostTokensInAll, " tokens in all"));
  }
  absl::string_view profile = halves.second;
  result.exact = absl::ConsumeSuffix(&profile, kExactSuffix);
  result.profile = std::string(profile);
  if (result.profile == kPlainDense) {
    if (result.exact) return BadCase(text, "plain-dense is exact without +exact");
    return result;
  }
  const std::vector<std::string>& names = AttentionProfileNames();
  if (std::find(names.begin(), names.end(), result.profile) == names.end()) {
    return BadCase(text, NoProfile(profile));
  }
  if (result.exact && result.tokens < kExactTokens) {
    return BadCase(text, absl::StrCat("+exact needs at least ", kExactTokens, " tokens"));
  }
  return result;
}

std::vector<AttentionCase> StandardAttentionCases(bool quick) {
  std::vector<std::pair<int, int>> sizes;
  if (quick) {
    sizes = {{32, 32768}, {8, 32768}, {1, 131072}, {128, 32768}};
  } else {
    for (const int batch : {1, 8, 32, 128}) {
      for (const int tokens : {4096, 32768, 131072}) sizes.emplace_back(batch, tokens);
    }
  }
  std::vector<AttentionCase> cases;
  for (const auto& [batch, tokens] : sizes) cases.push_back({batch, tokens, kPlainDense, false});
  for (const std::string& profile : AttentionProfileNames()) {
    for (const bool exact : {false, true}) {
      for (const auto& [batch, tokens] : sizes) cases.push_back({batch, tokens, profile, exact});
    }
  }
  return cases;
}

}  // namespace fourierkv
