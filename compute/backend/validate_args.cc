#include "compute/backend/validate_args.h"

#include <cmath>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "compute/base/bfloat16.h"

namespace fourierkv {
namespace {

constexpr float kLargestMagnitude = 1e30f;
constexpr int kMaxGroup = 64;
constexpr int kMaxQueryTokens = 1 << 20;
constexpr int64_t kMaxTokens = int64_t{1} << 40;

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

absl::Status CheckDtype(KvDtype dtype) {
  if (dtype == KvDtype::kBf16 || dtype == KvDtype::kFp16) return absl::OkStatus();
  return Invalid("dtype is ", static_cast<int>(dtype), "; it must be bf16 or fp16");
}

bool Aligned4(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 4 == 0; }

template <typename Job>
absl::Status CheckJob(const Job& job, size_t i) {
  if (job.layout == nullptr) return Invalid("jobs[", i, "].layout is null");
  if (job.dense == nullptr) return Invalid("jobs[", i, "].dense is null");
  if (job.payload == nullptr) return Invalid("jobs[", i, "].payload is null");
  if (!Aligned4(job.payload)) return Invalid("jobs[", i, "].payload is not 4-byte aligned");
  const int64_t needed = static_cast<int64_t>(job.layout->segment_tokens) * job.layout->head_dim;
  if (job.layout->kv_heads > 1 && job.head_stride < needed) {
    return Invalid("jobs[", i, "].head_stride is ", job.head_stride, "; it must be at least ",
                   needed, " (segment tokens x head_dim)");
  }
  return absl::OkStatus();
}

template <typename Job>
absl::Status CheckJobs(KvDtype dtype, std::span<Job> jobs) {
  if (absl::Status s = CheckDtype(dtype); !s.ok()) return s;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (absl::Status s = CheckJob(jobs[i], i); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status CheckLayout(const LayerKv& kv, const PartLayout* layout, const char* name) {
  if (layout == nullptr) return Invalid("kv.", name, " is null but there are compact blocks");
  if (layout->kv_heads != kv.kv_heads || layout->head_dim != kv.head_dim) {
    return Invalid("kv.", name, " is for ", layout->kv_heads, " heads of ", layout->head_dim,
                   " channels; the cache has ", kv.kv_heads, " of ", kv.head_dim);
  }
  return absl::OkStatus();
}

absl::Status CheckCompact(const LayerKv& kv) {
  if (kv.compact.empty()) return absl::OkStatus();
  if (absl::Status s = CheckLayout(kv, kv.k_layout, "k_layout"); !s.ok()) return s;
  if (absl::Status s = CheckLayout(kv, kv.v_layout, "v_layout"); !s.ok()) return s;
  if (kv.k_layout->segment_tokens != kv.v_layout->segment_tokens) {
    return Invalid("kv.k_layout has segments of ", kv.k_layout->segment_tokens,
                   " tokens, kv.v_layout of ", kv.v_layout->segment_tokens);
  }
  for (size_t i = 0; i < kv.compact.size(); ++i) {
    const CompactBlock& block = kv.compact[i];
    if (block.k == nullptr || block.v == nullptr) return Invalid("kv.compact[", i, "] is null");
    if (!Aligned4(block.k) || !Aligned4(block.v)) {
      return Invalid("kv.compact[", i, "] is not 4-byte aligned");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckExact(const LayerKv& kv, int64_t* tokens) {
  for (size_t i = 0; i < kv.exact.size(); ++i) {
    const ExactBlock& block = kv.exact[i];
    if (block.tokens < 0 || block.tokens > kMaxTokens) {
      return Invalid("kv.exact[", i, "].tokens is ", block.tokens, "; it must be from 0 to 2^40");
    }
    if (block.tokens == 0) continue;
    if (block.k == nullptr || block.v == nullptr) return Invalid("kv.exact[", i, "] is null");
    if (kv.kv_heads > 1 && block.head_stride < block.tokens * kv.head_dim) {
      return Invalid("kv.exact[", i, "].head_stride is ", block.head_stride,
                     "; it must be at least ", block.tokens * kv.head_dim, " (tokens x head_dim)");
    }
    *tokens += block.tokens;
  }
  return absl::OkStatus();
}

absl::Status CheckQueries(const AttentionArgs& args) {
  const int kv_heads = args.kv.kv_heads;
  if (args.query_heads < 1 || args.query_heads % kv_heads != 0) {
    return Invalid("query_heads is ", args.query_heads, "; it must be a multiple of kv.kv_heads, ",
                   kv_heads);
  }
  if (args.query_heads / kv_heads > kMaxGroup) {
    return Invalid("query_heads is ", args.query_heads, "; at most ", kMaxGroup,
                   " query heads may share each of the ", kv_heads, " KV heads");
  }
  if (args.query_tokens < 1 || args.query_tokens > kMaxQueryTokens) {
    return Invalid("query_tokens is ", args.query_tokens, "; it must be from 1 to ",
                   kMaxQueryTokens);
  }
  if (!std::isfinite(args.scale)) return Invalid("scale is not finite");
  if (args.q == nullptr) return Invalid("q is null");
  if (args.out == nullptr) return Invalid("out is null");
  if (args.query_tokens > 1) {
    const int64_t last = args.kv.exact.empty() ? 0 : args.kv.exact.back().tokens;
    if (args.query_tokens > last) {
      return Invalid("query_tokens is ", args.query_tokens, " but the last exact block has ", last,
                     " tokens; the queries' own tokens must be its last ones");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateEncode(KvDtype dtype, std::span<const EncodeJob> jobs) {
  return CheckJobs(dtype, jobs);
}

absl::Status ValidateDecode(KvDtype dtype, std::span<const DecodeJob> jobs) {
  return CheckJobs(dtype, jobs);
}

absl::Status ValidateAttention(const AttentionArgs& args) {
  const LayerKv& kv = args.kv;
  const KvGeometry geometry = {.layers = 1, .kv_heads = kv.kv_heads, .head_dim = kv.head_dim};
  if (absl::Status s = geometry.Validate(); !s.ok()) return s;
  if (absl::Status s = CheckDtype(kv.dtype); !s.ok()) return s;
  if (absl::Status s = CheckCompact(kv); !s.ok()) return s;
  auto tokens = static_cast<int64_t>(kv.compact.size());
  if (absl::Status s = CheckExact(kv, &tokens); !s.ok()) return s;
  if (tokens == 0) return Invalid("kv holds no tokens; attention needs at least one");
  return CheckQueries(args);
}

absl::Status RefusedValue(const EncodeJob& job, int head, KvDtype dtype) {
  const PartLayout& layout = *job.layout;
  const uint16_t* dense = job.dense + head * job.head_stride;
  for (int t = 0; t < layout.segment_tokens; ++t) {
    for (int c = 0; c < layout.head_dim; ++c) {
      const float value = KvToFloat(dense[static_cast<int64_t>(t) * layout.head_dim + c], dtype);
      if (std::fabs(value) <= kLargestMagnitude) continue;
      return Invalid("head ", head, ", token ", t, " of the segment, channel ", c, " is ", value,
                     "; values must be finite and within +-1e30");
    }
  }
  return absl::InternalError("a refused value is no longer there: the input changed meanwhile");
}

}  // namespace fourierkv
