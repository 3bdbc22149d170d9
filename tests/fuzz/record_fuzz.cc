// Records and descriptions of segments as tiers read them. First as they come; then with the
// checksums made right, since somebody who writes nonsense into a shared tier can compute those
// too.

#include <xxhash.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "compute/codec/segment_layout.h"
#include "kv_service/core/segment_record.h"

namespace {

using namespace fourierkv;

constexpr size_t kChecksumBytes = 16;

std::shared_ptr<const NamespaceContext> Context() {
  static const auto* const context = [] {
    CacheNamespace ns;
    ns.model_id = "m";
    ns.model_revision = "r";
    ns.weight_dtype = "bf16";
    ns.geometry = {.layers = 1, .kv_heads = 1, .head_dim = 8};
    ns.segment_tokens = 128;
    auto made = MakeNamespaceContext(ns, nullptr);
    if (!made.ok()) std::abort();
    return new std::shared_ptr<const NamespaceContext>(*made);
  }();
  return *context;
}

std::string WithChecksum(absl::string_view bytes) {
  std::string result(bytes.substr(0, bytes.size() - std::min(bytes.size(), kChecksumBytes)));
  XXH128_canonical_t checksum;
  XXH128_canonicalFromHash(&checksum, XXH3_128bits(result.data(), result.size()));
  return result.append(reinterpret_cast<const char*>(checksum.digest), sizeof checksum.digest);
}

void ReadDescription(absl::string_view bytes) {
  const auto described = DecodeDescription(
      bytes, [](absl::string_view ns) -> absl::StatusOr<std::shared_ptr<const NamespaceContext>> {
        auto decoded = DecodeNamespace(ns);
        if (!decoded.ok()) return decoded.status();
        if (EncodeNamespace(*decoded) != ns) std::abort();
        decoded->profile_id.reset();
        if (decoded->segment_tokens == 0) decoded->segment_tokens = 128;
        return MakeNamespaceContext(*decoded, nullptr);
      });
  if (described.ok() && described->segment.tokens < 1) std::abort();
}

void ReadRecord(absl::string_view bytes) {
  StoredSegment segment;
  segment.context = Context();
  segment.parent = segment.context->root;
  segment.tokens = 128;
  const auto budget = MemoryBudget::Create("fuzz", int64_t{1} << 20);
  {
    RecordReader reader(segment, SegmentForm::kLossless, *budget);
    const size_t half = bytes.size() / 2;
    const auto add = [&](absl::string_view part) {
      return reader.Add(std::as_bytes(std::span(part.data(), part.size())));
    };
    if (add(bytes.substr(0, half)).ok() && add(bytes.substr(half)).ok()) {
      const auto form = reader.Finish();
      if (form.ok() && (*form)->layers() != 1) std::abort();
    }
  }
  if (budget->used() != 0) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::string sealed = WithChecksum(bytes);
  for (const absl::string_view input : {bytes, absl::string_view(sealed)}) {
    ReadDescription(input);
    ReadRecord(input);
  }
  return 0;
}
