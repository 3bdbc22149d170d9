#include "kv_service/core/miss_report.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/codec/sequence_scope.h"

namespace fourierkv {
namespace {

constexpr size_t kMostElsewhere = 16;

// A segment without any form is only the place of one whose bytes were damaged.
std::optional<SegmentSummary> Held(const SegmentStore& store, const BlockKey& key) {
  auto segment = store.Describe(key);
  if (!segment.ok() || segment->bytes() == 0) return std::nullopt;
  return *std::move(segment);
}

std::vector<BlockKey> KeysIn(const CacheNamespace& ns, std::span<const uint32_t> tokens,
                             int64_t capacity) {
  if (ns.segment_tokens == 0) return {SequenceKey(ns.RootKey(), capacity, tokens)};
  KeyChain chain = ChainKeys(ns, tokens);
  if (chain.tail.has_value()) chain.segments.push_back(*chain.tail);
  return std::move(chain.segments);
}

// How many segments of the prompt, from the first on, are held in `ns`.
int64_t Matched(const SegmentStore& store, const CacheNamespace& ns,
                std::span<const uint32_t> tokens, int64_t capacity) {
  // The first key alone tells most namespaces apart.
  const auto first = static_cast<size_t>(std::max(ns.segment_tokens, 1));
  if (ns.segment_tokens > 0 && tokens.size() > first &&
      !Held(store, KeysIn(ns, tokens.first(first), 0)[0]).has_value()) {
    return 0;
  }
  const std::vector<BlockKey> keys = KeysIn(ns, tokens, capacity);
  const auto missing = std::find_if(
      keys.begin(), keys.end(), [&](const BlockKey& key) { return !Held(store, key).has_value(); });
  return missing - keys.begin();
}

const char* DtypeText(KvDtype dtype) { return dtype == KvDtype::kBf16 ? "bf16" : "fp16"; }

}  // namespace

std::vector<FieldDifference> Differences(const CacheNamespace& asked, const CacheNamespace& held) {
  std::vector<FieldDifference> differences;
  const auto compare = [&](const char* field, const std::string& a, const std::string& b) {
    if (a != b) differences.push_back({field, a, b});
  };
  const auto number = [&](const char* field, int64_t a, int64_t b) {
    compare(field, absl::StrCat(a), absl::StrCat(b));
  };
  const auto id = [](const std::optional<Digest>& profile) {
    return profile.has_value() ? profile->ToHex() : std::string();
  };
  if (asked.tenant_salt != held.tenant_salt) differences.push_back({"tenant_salt", "", ""});
  compare("model_id", asked.model_id, held.model_id);
  compare("model_revision", asked.model_revision, held.model_revision);
  compare("weight_dtype", asked.weight_dtype, held.weight_dtype);
  compare("kv_dtype", DtypeText(asked.kv_dtype), DtypeText(held.kv_dtype));
  number("layers", asked.geometry.layers, held.geometry.layers);
  number("kv_heads", asked.geometry.kv_heads, held.geometry.kv_heads);
  number("head_dim", asked.geometry.head_dim, held.geometry.head_dim);
  compare("rope", asked.rope, held.rope);
  number("tp_rank", asked.tp_rank, held.tp_rank);
  number("tp_size", asked.tp_size, held.tp_size);
  compare("lora_id", asked.lora_id, held.lora_id);
  compare("profile_id", id(asked.profile_id), id(held.profile_id));
  number("segment_tokens", asked.segment_tokens, held.segment_tokens);
  return differences;
}

absl::StatusOr<MissReport> ExplainMiss(const SegmentStore& store, const RemovalHistory& history,
                                       const CacheNamespace& ns, std::span<const uint32_t> tokens,
                                       int64_t capacity, const HeldLookup& lookup) {
  const auto length = static_cast<int64_t>(tokens.size());
  if (tokens.empty()) return absl::InvalidArgumentError("token_ids is empty");
  if (ns.segment_tokens == 0) {
    if (auto s = CheckSequenceShape(length, capacity); !s.ok()) return s;
  } else if (capacity != 0) {
    return absl::InvalidArgumentError(
        "sequence_capacity is for a namespace of whole sequences, whose segment_tokens is 0");
  }
  MissReport report;
  report.history_since = history.reaches_back_to();
  bool all = true;
  const std::vector<BlockKey> keys = KeysIn(ns, tokens, capacity);
  std::vector<std::optional<SegmentSummary>> held;
  if (lookup != nullptr) held = lookup(keys);
  held.resize(keys.size());
  for (const BlockKey& key : keys) {
    SegmentFate fate;
    fate.key = key;
    fate.index = static_cast<int64_t>(report.segments.size());
    const int64_t segment_tokens = ns.segment_tokens > 0 ? ns.segment_tokens : length;
    fate.tokens = static_cast<int>(std::min(segment_tokens, length - fate.index * segment_tokens));
    fate.held = lookup != nullptr ? std::move(held[fate.index]) : Held(store, key);
    if (fate.held.has_value() && fate.held->bytes() == 0) fate.held.reset();
    if (!fate.held.has_value()) {
      fate.removal = history.Find(key);
      all = false;
    }
    report.segments.push_back(std::move(fate));
  }
  if (all) return report;
  for (const auto& other : store.Namespaces()) {
    if (other->ns == ns) continue;
    // With the capacity asked for, or the least where none was.
    const int64_t matched = Matched(store, other->ns, tokens, capacity != 0 ? capacity : length);
    if (matched == 0) continue;
    report.elsewhere.push_back({other->root, Differences(ns, other->ns), matched});
  }
  std::sort(report.elsewhere.begin(), report.elsewhere.end(),
            [](const NearNamespace& a, const NearNamespace& b) {
              return std::pair(a.differences.size(), b.matched_segments) <
                     std::pair(b.differences.size(), a.matched_segments);
            });
  if (report.elsewhere.size() > kMostElsewhere) report.elsewhere.resize(kMostElsewhere);
  return report;
}

}  // namespace fourierkv
