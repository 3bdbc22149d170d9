#include "compute/model/cuda/cuda_sequence.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/codec/segment_blob.h"

namespace fourierkv {
namespace {

absl::Status RunStep(CudaEngineState& engine, std::span<CudaStepRow* const> steps) {
  std::vector<DecodeRow> rows;
  bool with_logits = false;
  for (const CudaStepRow* step : steps) {
    rows.push_back(step->row);
    with_logits = with_logits || step->with_logits;
  }
  DecodeOutput out;
  {
    std::lock_guard turn(engine.turns);
    if (absl::Status s = engine.runner->DecodeStep(rows, &out, with_logits); !s.ok()) return s;
  }
  const size_t vocab = out.logits.size() / steps.size();
  for (size_t i = 0; i < steps.size(); ++i) {
    steps[i]->choice = out.choices[i];
    if (!steps[i]->with_logits) continue;
    steps[i]->logits.assign(out.logits.begin() + i * vocab, out.logits.begin() + (i + 1) * vocab);
  }
  return absl::OkStatus();
}

// The stream of copies of what has been computed: what a pass or a seal has made is there when it
// returns.
const cudaStream_t kCopies = cudaStreamPerThread;

}  // namespace

CudaEngineState::CudaEngineState(std::shared_ptr<DeviceKvPool> kv_pool,
                                 std::unique_ptr<CudaLlamaRunner> llama_runner, int max_batch)
    : pool(std::move(kv_pool)),
      runner(std::move(llama_runner)),
      budget({.blocks = pool->blocks(), .slots = pool->slots()}),
      batcher(max_batch,
              [this](std::span<CudaStepRow* const> rows) { return RunStep(*this, rows); }) {}

absl::StatusOr<std::unique_ptr<CudaSequence>> CudaSequence::Create(
    std::shared_ptr<CudaEngineState> engine, const SequenceOptions& options) {
  std::unique_ptr<CudaSequence> sequence(new CudaSequence(std::move(engine)));
  CudaEngineState& state = *sequence->engine_;
  absl::StatusOr<std::unique_ptr<DeviceKvCache>> cache =
      DeviceKvCache::Create(state.pool, {.compact = options.compact,
                                         .recent_window = options.recent_window,
                                         .max_tokens = options.max_tokens,
                                         .max_relative_error = options.max_relative_error});
  if (!cache.ok()) return cache.status();
  sequence->cache_ = *std::move(cache);
  const int segment_tokens = state.pool->segment_tokens();
  absl::StatusOr<std::unique_ptr<KvBudget::Claim>> claim = state.budget.Take(PlacesNeeded(
      options.compact, std::isfinite(options.max_relative_error), options.max_tokens,
      options.recent_window, segment_tokens, std::max(kPromptChunkTokens, segment_tokens)));
  if (!claim.ok()) return claim.status();
  sequence->claim_ = *std::move(claim);
  sequence->fill_.emplace(
      sequence->cache_.get(), &state.uploads,
      [s = sequence.get()](const FillPlan& plan) { return s->BeginFill(plan); });
  return sequence;
}

CudaSequence::~CudaSequence() {
  fill_.reset();
  std::lock_guard turn(engine_->turns);
  cache_.reset();
}

absl::Status CudaSequence::BeginFill(const FillPlan& plan) {
  if (absl::Status s = cache_->CheckFill(plan); !s.ok()) return s;
  const KvPlaces needed = cache_->PlacesOf(plan);
  const KvPlaces& claimed = claim_->places();
  if (needed.blocks > claimed.blocks || needed.slots > claimed.slots) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "a fill of ", plan.length, " tokens with ", needed.slots, " compact segments needs ",
        needed.blocks, " blocks of exact tokens; a sequence with these options has ",
        claimed.blocks, " blocks and ", claimed.slots, " slots"));
  }
  std::lock_guard turn(engine_->turns);
  return cache_->BeginFill(plan);
}

absl::Status CudaSequence::Prefill(std::span<const int32_t> tokens, std::vector<float>* logits,
                                   const PromptOptions& options) {
  if (absl::Status s = engine_->runner->CheckTokens(tokens, *cache_); !s.ok()) return s;
  if (absl::Status s = fill_->Wait(); !s.ok()) return s;
  const auto chunk = static_cast<size_t>(std::max<int64_t>(kPromptChunkTokens, segment_tokens()));
  // What a stopped pass has left: claims are for one chunk above what stays exact.
  if (absl::Status s = Seal(); !s.ok()) return s;
  ForwardOutput out;
  for (size_t at = 0; at < tokens.size(); at += chunk) {
    if (options.wanted) {
      if (absl::Status s = options.wanted(); !s.ok()) return s;
    }
    const std::span<const int32_t> part = tokens.subspan(at, std::min(chunk, tokens.size() - at));
    const bool last = at + part.size() == tokens.size();
    const int64_t first = cache_->length();
    {
      std::lock_guard turn(engine_->turns);
      absl::Status s = engine_->runner->Extend(
          part, *cache_, &out, last && logits != nullptr ? Logits::kLast : Logits::kNone);
      if (!s.ok()) return s;
    }
    if (options.on_part) {  // others may compute meanwhile
      absl::Status s = ReadExact(first, static_cast<int64_t>(part.size()), options.on_part);
      if (!s.ok()) return s;
    }
    if (absl::Status s = Seal(); !s.ok()) return s;
  }
  if (logits != nullptr) *logits = std::move(out.logits);
  return absl::OkStatus();
}

absl::Status CudaSequence::Seal() {
  if (cache_->SegmentsDue() == 0) return absl::OkStatus();
  DeviceKvCache* const cache = cache_.get();
  std::lock_guard turn(engine_->turns);
  return engine_->runner->Seal({&cache, 1});
}

absl::Status CudaSequence::ReadExact(
    int64_t first, int64_t tokens,
    const std::function<absl::Status(ComputedPart part)>& on_part) const {
  absl::StatusOr<Download> download = engine_->downloads.Borrow();
  if (!download.ok()) return download.status();
  for (int layer = 0; layer < engine_->pool->geometry().layers; ++layer) {
    for (int64_t at = 0; at < tokens; at += segment_tokens()) {
      for (const Part part : kParts) {
        absl::StatusOr<ComputedPart> exact =
            Fetch(**download, layer, first + at, std::min(segment_tokens(), tokens - at), part);
        if (!exact.ok()) return exact.status();
        if (absl::Status s = on_part(*std::move(exact)); !s.ok()) return s;
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ComputedPart> CudaSequence::Fetch(cuda::StagedDownload& download, int layer,
                                                 int64_t first, int64_t tokens, Part part) const {
  const KvGeometry& g = engine_->pool->geometry();
  const int64_t segment = segment_tokens();
  const int64_t index = cache_->places().IndexOfRun(first, tokens, cache_->length());
  if (index < 0 || index % segment != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", layer, ": ", tokens, " tokens from position ", first,
                     " are not held exactly, or are not the first of a segment"));
  }
  const int32_t block = cache_->blocks()[index / segment];
  ComputedPart computed = {layer, first, tokens, part, {}};
  std::vector<uint16_t>& values = computed.values;
  values.resize(g.kv_heads * segment * g.head_dim);
  absl::Status s = download.Copy(engine_->pool->block(layer, block, part),
                                 values.size() * kKvDtypeBytes, values.data(), kCopies);
  if (!s.ok()) return s;
  // Of the last segment, the heads' first tokens are moved together.
  for (int64_t head = 1; tokens < segment && head < g.kv_heads; ++head) {
    std::copy_n(values.begin() + head * segment * g.head_dim, tokens * g.head_dim,
                values.begin() + head * tokens * g.head_dim);
  }
  values.resize(g.kv_heads * tokens * g.head_dim);
  return computed;
}

absl::StatusOr<SampledToken> CudaSequence::Step(int32_t token, Sampler& sampler) {
  if (absl::Status s = engine_->runner->CheckTokens({&token, 1}, *cache_); !s.ok()) return s;
  if (absl::Status s = fill_->Wait(); !s.ok()) return s;
  CudaStepRow step;
  step.row = {cache_.get(), token};
  step.with_logits = !sampler.greedy();
  if (absl::Status s = engine_->batcher.Step(step); !s.ok()) return s;
  if (step.with_logits) return sampler.Next(step.logits);
  if (step.choice.token < 0) {
    return absl::InternalError("a logit is not finite: the cache or the weights are damaged");
  }
  return SampledToken{step.choice.token, step.choice.log_probability};
}

absl::StatusOr<std::vector<SealedSegment>> CudaSequence::TakeSealed() {
  std::vector<SealedSegment> taken;
  const std::vector<DeviceSealed> all = cache_->TakeSealed();
  if (all.empty()) return taken;
  absl::StatusOr<Download> download = engine_->downloads.Borrow();
  if (!download.ok()) return download.status();
  for (const DeviceSealed& sealed : all) {
    absl::StatusOr<SealedSegment> segment = Fetch(**download, sealed);
    if (!segment.ok()) return segment.status();
    taken.push_back(*std::move(segment));
  }
  return taken;
}

absl::StatusOr<SealedSegment> CudaSequence::Fetch(cuda::StagedDownload& download,
                                                  const DeviceSealed& sealed) const {
  SealedSegment segment;
  segment.index = sealed.segment;
  segment.dtype = kEngineKvDtype;
  for (size_t i = 0; i < sealed.relative_errors.size(); ++i) {
    const int layer = static_cast<int>(i / 2);
    const Part part = kParts[i % 2];
    const auto bytes =
        static_cast<size_t>(engine_->pool->profile().layout().part(layer, part).payload_bytes);
    auto blob = std::make_shared<std::vector<std::byte>>(kBlobHeaderBytes + bytes);
    absl::Status s = download.Copy(engine_->pool->payload(layer, sealed.slot, part), bytes,
                                   blob->data() + kBlobHeaderBytes, kCopies);
    if (!s.ok()) return s;
    segment.parts.push_back({sealed.relative_errors[i], std::move(blob)});
  }
  return segment;
}

}  // namespace fourierkv
