#include "clients/decode_worker/decode_engine.h"

#include <algorithm>
#include <memory>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/decode_worker/sealed_upload.h"
#include "clients/worker/prefix_fetch.h"
#include "clients/worker/prefix_plan.h"
#include "compute/base/structured_log.h"
#include "compute/model/host_engine.h"
#include "proto/support/convert.h"

namespace fourierkv {
namespace {

constexpr absl::Duration kLease = absl::Minutes(5);
constexpr absl::Duration kMatchTimeout = absl::Seconds(10);
constexpr absl::Duration kUploadTimeout = absl::Seconds(10);

// One generation.
class Decode {
 public:
  Decode(const WorkerRuntime& runtime, const GenerateTask& task)
      : runtime_(runtime),
        task_(task),
        begun_(absl::Now()),
        tokens_(task.tokens),
        prompt_tokens_(static_cast<int64_t>(task.tokens.size())) {}

  absl::StatusOr<v1::GenerateResult> Run() {
    absl::StatusOr<Sampler> sampler = Sampler::Create(task_.sampling);
    if (!sampler.ok()) return sampler.status();
    absl::StatusOr<v1::MatchPrefixResponse> match = Match();
    if (!match.ok()) {
      // Without the service everything can still be computed.
      Log(LogLevel::kWarning, "decode.match_failed", {{"status", match.status()}});
      match = v1::MatchPrefixResponse();
    }
    std::vector<float> logits;
    absl::Status status = RunPrompt(*match, &logits);
    if (!status.ok() && result_.reused_tokens() > 0 && Wanted().ok()) {
      Log(LogLevel::kWarning, "decode.fetch_failed", {{"status", status}});
      status = RunPrompt(v1::MatchPrefixResponse(), &logits);
    }
    if (match->lease_id() != 0) {
      runtime_.kv().Release(match->lease_id(), absl::Now() + absl::Seconds(5)).IgnoreError();
    }
    if (!status.ok()) return status;
    if (absl::Status s = Generate(*sampler, logits); !s.ok()) return s;
    StoreSealed();
    return std::move(result_);
  }

 private:
  absl::StatusOr<v1::MatchPrefixResponse> Match() const {
    if (sequence()) return MatchTokens(sequence_prefix());
    // A prefix that was prefilled on its own has a tail, which only matches as the last segment.
    const bool own_tail = task_.prefilled_tokens % runtime_.segment_tokens() != 0;
    absl::StatusOr<v1::MatchPrefixResponse> match =
        MatchTokens(own_tail ? task_.prefilled_tokens : prompt_tokens_);
    if (own_tail && match.ok() && match->matched_tokens() < task_.prefilled_tokens) {
      runtime_.kv().Release(match->lease_id(), task_.deadline).IgnoreError();
      match = MatchTokens(prompt_tokens_);
    }
    return match;
  }

  absl::StatusOr<v1::MatchPrefixResponse> MatchTokens(int64_t count) const {
    v1::MatchPrefixRequest request;
    *request.mutable_namespace_() = runtime_.ns(task_.mode);
    request.mutable_token_ids()->Assign(tokens_.begin(), tokens_.begin() + count);
    *request.mutable_lease_ttl() = ToProto(kLease);
    if (sequence()) request.set_sequence_capacity(task_.sequence_capacity);
    return runtime_.kv().MatchPrefix(request,
                                     std::min(task_.deadline, absl::Now() + kMatchTimeout));
  }

  // Fetches what `match` offers and computes the rest of the prompt. Starts anew if called again.
  absl::Status RunPrompt(const v1::MatchPrefixResponse& match, std::vector<float>* logits) {
    fetch_.reset();
    sequence_.reset();
    absl::StatusOr<int64_t> fetched = sequence() ? StartSequence(match) : StartSegments(match);
    if (!fetched.ok()) return fetched.status();
    const int64_t reused = *fetched;
    result_.set_reused_tokens(reused);
    result_.set_computed_tokens(prompt_tokens_ - reused);
    const absl::Status status = sequence_->Prefill(std::span(tokens_).subspan(reused), logits,
                                                   {.wanted = [this] { return Wanted(); }});
    if (fetch_ != nullptr) {
      if (absl::Status s = fetch_->Wait(); !s.ok()) return s;
      result_.set_payload_bytes_fetched(fetch_->payload_bytes());
      *result_.mutable_fetch_time() = ToProto(fetch_->duration());
    } else {
      result_.clear_payload_bytes_fetched();
      result_.clear_fetch_time();
    }
    return status;
  }

  // Makes the cache and starts fetching what `match` offers; how many tokens that is.
  absl::StatusOr<int64_t> StartSegments(const v1::MatchPrefixResponse& match) {
    absl::StatusOr<std::unique_ptr<ModelSequence>> made =
        runtime_.engine().NewSequence({.compact = task_.mode == v1::CACHE_MODE_COMPACT,
                                       .recent_window = task_.recent_window,
                                       .max_tokens = prompt_tokens_ + task_.max_new_tokens,
                                       .max_relative_error = task_.max_relative_error});
    if (!made.ok()) return made.status();
    sequence_ = *std::move(made);
    PrefixPolicy policy;
    policy.mode = task_.mode;
    policy.segment_tokens = runtime_.segment_tokens();
    policy.recent_window = task_.recent_window;
    policy.sequence_tokens = prompt_tokens_;
    policy.max_relative_error = task_.max_relative_error;
    policy.max_reused = prompt_tokens_ - 1;  // the last token is computed, for its logits
    PrefixPlan plan = PlanPrefix(match, policy);
    const int64_t reused = plan.fill.length;
    if (plan.empty()) return reused;
    absl::StatusOr<std::unique_ptr<PrefixFetch>> started = PrefixFetch::Start(
        &runtime_.kv(), std::move(plan), sequence_->fill_target(), task_.deadline);
    if (!started.ok()) return started.status();
    fetch_ = *std::move(started);
    return reused;
  }

  // The same with a whole sequence: all of it or nothing.
  absl::StatusOr<int64_t> StartSequence(const v1::MatchPrefixResponse& match) {
    // A single token would only be fetched to be computed again.
    const bool stored = match.segments_size() > 0 && sequence_prefix() > 1;
    absl::StatusOr<std::unique_ptr<SequenceKvCache>> made =
        runtime_.NewSequenceCache(task_.sequence_capacity, stored ? 0 : prompt_tokens_);
    if (!made.ok()) return made.status();
    SequenceKvCache* const cache = made->get();
    sequence_ = NewWholeSequence(runtime_.model(), runtime_.pool(), *std::move(made));
    if (!stored) return 0;
    absl::StatusOr<std::unique_ptr<PrefixFetch>> started = PrefixFetch::Start(
        &runtime_.kv(), match.segments(0).block_key(), sequence_prefix(), cache, task_.deadline);
    if (!started.ok()) return started.status();
    fetch_ = *std::move(started);
    if (sequence_prefix() < prompt_tokens_) return sequence_prefix();
    if (absl::Status s = cache->ForgetLast(); !s.ok()) return s;
    return prompt_tokens_ - 1;  // the last token is computed, for its logits
  }

  absl::Status Generate(Sampler& sampler, const std::vector<float>& logits) {
    result_.set_prompt_tokens(prompt_tokens_);
    result_.set_finish_reason(v1::FINISH_REASON_LENGTH);
    absl::Time first_token;
    for (int made = 0; made < task_.max_new_tokens; ++made) {
      absl::StatusOr<SampledToken> token =
          made == 0 ? sampler.Next(logits) : sequence_->Step(tokens_.back(), sampler);
      if (!token.ok()) return token.status();
      if (made == 0) {
        first_token = absl::Now();
        *result_.mutable_time_to_first_token() = ToProto(first_token - begun_);
      }
      if (IsStop(token->token)) {
        result_.set_finish_reason(v1::FINISH_REASON_STOP);
        break;
      }
      tokens_.push_back(token->token);
      result_.set_new_tokens(result_.new_tokens() + 1);
      if (task_.on_token && !task_.on_token(*token)) {
        return absl::CancelledError("the caller is gone");
      }
      if (absl::Status s = Wanted(); !s.ok()) return s;
    }
    *result_.mutable_decode_time() = ToProto(absl::Now() - first_token);
    const CacheStats stats = sequence_->stats();
    result_.set_cache_exact_bytes(stats.exact_bytes);
    result_.set_cache_compact_bytes(stats.compact_bytes);
    result_.set_cache_dense_equivalent_bytes(stats.dense_bytes);
    result_.set_bounded_segments(static_cast<uint32_t>(stats.exact_inside));
    return absl::OkStatus();
  }

  // OK as long as somebody waits for the answer.
  absl::Status Wanted() const {
    if (task_.cancelled && task_.cancelled()) return absl::CancelledError("the caller is gone");
    if (absl::Now() > task_.deadline) {
      return absl::DeadlineExceededError("the deadline passed while generating");
    }
    return absl::OkStatus();
  }

  bool IsStop(int32_t token) const {
    const std::vector<int>& eos = runtime_.model()->config().eos_token_ids;
    return std::find(eos.begin(), eos.end(), token) != eos.end() ||
           std::find(task_.stop_tokens.begin(), task_.stop_tokens.end(), token) !=
               task_.stop_tokens.end();
  }

  // A gain for later requests only: failure is logged, and the answer stands.
  void StoreSealed() {
    absl::StatusOr<std::vector<SealedSegment>> taken = sequence_->TakeSealed();
    if (!taken.ok()) {
      Log(LogLevel::kWarning, "decode.store_failed", {{"status", taken.status()}});
      return;
    }
    std::vector<SealedSegment>& sealed = *taken;
    result_.set_sealed_segments(static_cast<uint32_t>(sealed.size()));
    if (sealed.empty()) return;
    // A put is of consecutive segments; between these some may have had to stay exact.
    const auto gap = std::adjacent_find(
        sealed.begin(), sealed.end(),
        [](const SealedSegment& a, const SealedSegment& b) { return a.index + 1 != b.index; });
    if (gap != sealed.end()) sealed.erase(gap + 1, sealed.end());
    absl::StatusOr<uint32_t> stored = UploadSealed(
        runtime_, sealed, tokens_, std::min(task_.deadline, absl::Now() + kUploadTimeout));
    if (!stored.ok()) {
      Log(LogLevel::kWarning, "decode.store_failed", {{"status", stored.status()}});
      return;
    }
    result_.set_stored_segments(*stored);
  }

  bool sequence() const { return runtime_.sequence(task_.mode); }
  // What may be stored as one sequence.
  int64_t sequence_prefix() const {
    return task_.prefilled_tokens > 0 ? task_.prefilled_tokens : prompt_tokens_;
  }

  const WorkerRuntime& runtime_;
  const GenerateTask& task_;
  const absl::Time begun_;
  std::vector<int32_t> tokens_;  // prompt and answer
  const int64_t prompt_tokens_;
  std::unique_ptr<ModelSequence> sequence_;
  std::unique_ptr<PrefixFetch> fetch_;  // fills sequence_, so it goes first
  v1::GenerateResult result_;
};

}  // namespace

absl::StatusOr<v1::GenerateResult> RunDecode(const WorkerRuntime& runtime,
                                             const GenerateTask& task) {
  if (absl::Status s = CheckErrorBound(runtime, task.mode, task.max_relative_error); !s.ok()) {
    return s;
  }
  const int64_t tokens = static_cast<int64_t>(task.tokens.size()) + task.max_new_tokens;
  if (runtime.sequence(task.mode) && tokens > task.sequence_capacity) {
    return absl::InvalidArgumentError(absl::StrCat(
        "sequence_capacity is ", task.sequence_capacity, ", but the prompt and max_new_tokens are ",
        tokens, " tokens, and the sequence's Fourier basis ends there: ask for fewer new tokens, ",
        "or prefill with a larger max_new_tokens"));
  }
  return Decode(runtime, task).Run();
}

}  // namespace fourierkv
