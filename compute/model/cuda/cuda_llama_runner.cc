#include "compute/model/cuda/cuda_llama_runner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/cache/dense_kv_cache.h"
#include "kernels/dense_attention.h"
#include "kernels/fourier_attention.h"
#include "kernels/prefill_attention.h"

namespace fourierkv {
namespace {

constexpr auto kBf16 = kernels::ElementType::kBf16;

// Rows of int32 that stand one behind the other begin at multiples of 16 bytes.
int PaddedRows(int rows) { return (rows + 3) / 4 * 4; }

float Scale(const ModelConfig& c) { return 1.0f / std::sqrt(static_cast<float>(c.head_dim)); }

GemmShape QkvShape(const ModelConfig& c, int rows) {
  return {(int64_t{c.query_heads} + 2 * c.kv_heads) * c.head_dim, c.hidden_size, rows,
          GemmOutput::kFloat};
}
GemmShape OShape(const ModelConfig& c, int rows) {
  return {c.hidden_size, int64_t{c.query_heads} * c.head_dim, rows, GemmOutput::kAddFloat};
}
GemmShape GateUpShape(const ModelConfig& c, int rows) {
  return {2 * int64_t{c.intermediate_size}, c.hidden_size, rows, GemmOutput::kBf16};
}
GemmShape DownShape(const ModelConfig& c, int rows) {
  return {c.hidden_size, c.intermediate_size, rows, GemmOutput::kAddFloat};
}
GemmShape LogitsShape(const ModelConfig& c, int rows) {
  return {c.vocab_size, c.hidden_size, rows, GemmOutput::kFloat};
}

}  // namespace

// The graph of a decode step, once it has been captured.
struct CudaLlamaRunner::Graph {
  Graph() = default;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    if (executable != nullptr) cudaGraphExecDestroy(executable);
  }
  bool warm = false;  // a step was run without
  cudaGraphExec_t executable = nullptr;
};

absl::StatusOr<std::unique_ptr<CudaLlamaRunner>> CudaLlamaRunner::Create(
    std::shared_ptr<const DeviceLlamaModel> model, std::shared_ptr<DeviceKvPool> pool,
    const CudaRunnerOptions& options) {
  if (options.max_batch < 1 || options.max_batch > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_batch is ", options.max_batch, "; it must be 1 to 1024"));
  }
  if (options.chunk_tokens < 1 || options.chunk_tokens > 8192) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk_tokens is ", options.chunk_tokens, "; it must be 1 to 8192"));
  }
  if (absl::Status s = pool->profile().layout().profile().CheckFits(model->config().Geometry());
      !s.ok()) {
    return s;
  }
  std::unique_ptr<CudaLlamaRunner> runner(
      new CudaLlamaRunner(std::move(model), std::move(pool), options));
  if (absl::Status s = runner->Allocate(); !s.ok()) return s;
  return runner;
}

CudaLlamaRunner::CudaLlamaRunner(std::shared_ptr<const DeviceLlamaModel> model,
                                 std::shared_ptr<DeviceKvPool> pool,
                                 const CudaRunnerOptions& options)
    : model_(std::move(model)),
      pool_(std::move(pool)),
      options_(options),
      max_rows_(PaddedRows(std::max(options.max_batch, options.chunk_tokens))),
      decoder_(pool_) {}

CudaLlamaRunner::~CudaLlamaRunner() {
  if (stream_ == nullptr) return;
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
}

absl::Status CudaLlamaRunner::Allocate() {
  const ModelConfig& c = model_->config();
  absl::Status s =
      CudaStatus(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
  if (!s.ok()) return s;
  absl::StatusOr<std::unique_ptr<Gemm>> gemm = Gemm::Create();
  if (!gemm.ok()) return gemm.status();
  gemm_ = *std::move(gemm);
  absl::StatusOr<std::unique_ptr<DeviceKvTables>> tables = DeviceKvTables::Create(
      pool_, options_.max_batch, std::min<int64_t>(c.max_position_embeddings, kMaxCacheTokens));
  if (!tables.ok()) return tables.status();
  tables_ = *std::move(tables);
  absl::StatusOr<std::unique_ptr<SegmentSealer>> sealer = SegmentSealer::Create(pool_);
  if (!sealer.ok()) return sealer.status();
  sealer_ = *std::move(sealer);

  const int64_t rows = max_rows_;
  const int64_t q_size = int64_t{c.query_heads} * c.head_dim;
  const std::pair<DeviceBuffer*, int64_t> buffers[] = {
      {&device_rows_, 3 * rows * 4},
      {&rope_, rows * c.head_dim * 4},
      {&x_, rows * c.hidden_size * 4},
      {&norm_, rows * c.hidden_size * 2},
      {&qkv_, rows * QkvShape(c, 1).out * 4},
      {&q_, rows * q_size * 2},
      {&attention_, rows * q_size * 2},
      {&gate_up_, rows * 2 * c.intermediate_size * 2},
      {&mlp_, rows * c.intermediate_size * 2},
      {&logits_, int64_t{options_.max_batch} * c.vocab_size * 4},
      {&choices_, options_.max_batch * static_cast<int64_t>(sizeof(kernels::TokenChoice))}};
  for (const auto& [buffer, bytes] : buffers) {
    absl::StatusOr<DeviceBuffer> made = DeviceBuffer::Create(static_cast<size_t>(bytes));
    if (!made.ok()) return made.status();
    *buffer = *std::move(made);
  }
  return AllocateAttentionWorkspace();
}

absl::Status CudaLlamaRunner::AllocateAttentionWorkspace() {
  const ModelConfig& c = model_->config();
  if (kernels::DenseAttentionFits(c.kv_heads, c.query_heads, c.head_dim)) {
    int64_t bytes = 0;
    for (int batch = 1; batch <= options_.max_batch; ++batch) {
      bytes = std::max(
          bytes, kernels::DenseAttentionWorkspace(batch, c.kv_heads, c.query_heads, c.head_dim));
    }
    absl::StatusOr<DeviceBuffer> workspace = DeviceBuffer::Create(static_cast<size_t>(bytes));
    if (!workspace.ok()) return workspace.status();
    exact_workspace_ = *std::move(workspace);
  }
  int64_t bytes = 0;
  std::vector<kernels::AttentionPlanView> plans;
  for (int layer = 0; layer < c.layers; ++layer) {
    const kernels::AttentionPlanView& plan = pool_->profile().plan(layer);
    plans.push_back(plan);
    for (int batch = 1; batch <= options_.max_batch; ++batch) {
      const int64_t needed = kernels::FourierAttentionWorkspace(plan, batch, c.query_heads);
      if (needed < 0) {
        return absl::InvalidArgumentError(absl::StrCat(
            "attention of ", batch, " sequences of ", c.query_heads,
            " query heads cannot run on this device: head dimensions must be multiples ",
            "of 8 up to 256, and at most 16 query heads may share a KV head"));
      }
      bytes = std::max(bytes, needed);
    }
  }
  absl::StatusOr<AttentionSchedules> schedules =
      AttentionSchedules::Create(plans, options_.max_batch, c.query_heads);
  if (!schedules.ok()) return schedules.status();
  schedules_ = *std::move(schedules);
  absl::StatusOr<DeviceBuffer> workspace = DeviceBuffer::Create(static_cast<size_t>(bytes));
  if (!workspace.ok()) return workspace.status();
  attention_workspace_ = *std::move(workspace);
  return CudaStatus(cudaMemset(attention_workspace_.data(), 0, attention_workspace_.size()),
                    "clearing the workspace of attention");
}

absl::Status CudaLlamaRunner::CheckToken(size_t index, int32_t token) const {
  const int vocab = model_->config().vocab_size;
  if (token >= 0 && token < vocab) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("tokens[", index, "] is ", token, "; the vocabulary is 0 to ", vocab - 1));
}

absl::Status CudaLlamaRunner::CheckRoom(const DeviceKvCache& cache, int64_t tokens) const {
  if (&cache.pool() != pool_.get()) {
    return absl::InvalidArgumentError("the cache is of another pool than the runner's");
  }
  const int64_t most = model_->config().max_position_embeddings;
  if (tokens > most - cache.length()) {
    return absl::OutOfRangeError(absl::StrCat("position ", cache.length() + tokens - 1,
                                              " is beyond the model's last one, ", most - 1));
  }
  return absl::OkStatus();
}

absl::Status CudaLlamaRunner::PrepareProducts(int rows, int logit_rows) {
  const ModelConfig& c = model_->config();
  for (const GemmShape& shape :
       {QkvShape(c, rows), OShape(c, rows), GateUpShape(c, rows), DownShape(c, rows)}) {
    if (absl::Status s = gemm_->Prepare(shape); !s.ok()) return s;
  }
  if (logit_rows == 0) return absl::OkStatus();
  return gemm_->Prepare(LogitsShape(c, logit_rows));
}

absl::Status CudaLlamaRunner::UploadRows() {
  int32_t* to = device_rows_.as<int32_t>();
  for (const std::vector<int32_t>* from : {&tokens_, &positions_, &row_pages_}) {
    absl::Status s = CudaStatus(cudaMemcpyAsync(to, from->data(), from->size() * sizeof(int32_t),
                                                cudaMemcpyHostToDevice, stream_),
                                "copying tokens to the device");
    if (!s.ok()) return s;
    to += max_rows_;
  }
  return absl::OkStatus();
}

absl::Status CudaLlamaRunner::Embed(int rows) {
  const ModelConfig& c = model_->config();
  const int32_t* tokens = device_rows_.as<const int32_t>();
  absl::Status s = CudaStatus(kernels::LaunchEmbedTokens(model_->embeddings(), tokens, rows,
                                                         c.hidden_size, x_.as<float>(), stream_),
                              "embedding tokens");
  if (!s.ok()) return s;
  return CudaStatus(kernels::LaunchRopeTable(tokens + max_rows_, model_->rope_frequencies(), rows,
                                             c.head_dim / 2, rope_.as<float>(), stream_),
                    "angles of rotary embedding");
}

absl::Status CudaLlamaRunner::BeforeAttention(int layer, int rows) {
  const ModelConfig& c = model_->config();
  const DeviceLlamaLayer& weights = model_->layers()[layer];
  absl::Status s = CudaStatus(kernels::LaunchRmsNorm(x_.as<const float>(), weights.attention_norm,
                                                     static_cast<float>(c.rms_norm_eps), rows,
                                                     c.hidden_size, norm_.as<uint16_t>(), stream_),
                              "normalising");
  if (!s.ok()) return s;
  s = gemm_->Run(QkvShape(c, rows), weights.qkv, norm_.as<const uint16_t>(), qkv_.data(), stream_);
  if (!s.ok()) return s;
  kernels::RopeAppendParams params = {};
  params.rows = rows;
  params.query_heads = c.query_heads;
  params.kv_heads = c.kv_heads;
  params.head_dim = c.head_dim;
  params.qkv = qkv_.as<const float>();
  params.rope = rope_.as<const float>();
  params.positions = device_rows_.as<const int32_t>() + max_rows_;
  params.row_pages = device_rows_.as<const int32_t>() + 2 * max_rows_;
  params.pages = tables_->pages(layer);
  params.page_head_stride = int64_t{pool_->segment_tokens()} * c.head_dim;
  params.q = q_.as<uint16_t>();
  return CudaStatus(kernels::LaunchRopeAppend(params, stream_), "appending to KV caches");
}

absl::Status CudaLlamaRunner::AfterAttention(int layer, int rows) {
  const ModelConfig& c = model_->config();
  const DeviceLlamaLayer& weights = model_->layers()[layer];
  absl::Status s =
      gemm_->Run(OShape(c, rows), weights.o, attention_.as<const uint16_t>(), x_.data(), stream_);
  if (!s.ok()) return s;
  s = CudaStatus(kernels::LaunchRmsNorm(x_.as<const float>(), weights.mlp_norm,
                                        static_cast<float>(c.rms_norm_eps), rows, c.hidden_size,
                                        norm_.as<uint16_t>(), stream_),
                 "normalising");
  if (!s.ok()) return s;
  GemmShape gate_up = GateUpShape(c, rows);
  gate_up.output = GemmOutput::kSiluMul;
  if (Gemm::IsSkinny(gate_up)) {
    s = gemm_->Run(gate_up, weights.gate_up, norm_.as<const uint16_t>(), mlp_.data(), stream_);
  } else {
    gate_up.output = GemmOutput::kBf16;
    s = gemm_->Run(gate_up, weights.gate_up, norm_.as<const uint16_t>(), gate_up_.data(), stream_);
    if (!s.ok()) return s;
    s = CudaStatus(kernels::LaunchSiluMul(gate_up_.as<const uint16_t>(), rows, c.intermediate_size,
                                          mlp_.as<uint16_t>(), stream_),
                   "activation");
  }
  if (!s.ok()) return s;
  return gemm_->Run(DownShape(c, rows), weights.down, mlp_.as<const uint16_t>(), x_.data(),
                    stream_);
}

absl::Status CudaLlamaRunner::AttendChunk(int layer, int rows, int64_t tokens) {
  if (absl::Status s = decoder_.Decode(layer, stream_); !s.ok()) return s;
  const ModelConfig& c = model_->config();
  kernels::PrefillAttentionParams params = {};
  params.kv_heads = c.kv_heads;
  params.query_heads = c.query_heads;
  params.head_dim = c.head_dim;
  params.query_tokens = rows;
  params.dtype = kBf16;
  params.scale = Scale(c);
  params.tiles = tables_->tiles(layer);
  params.tile_count = tables_->tile_count();
  params.tokens = tokens;
  params.q = q_.data();
  params.out = attention_.data();
  params.q_stride = int64_t{c.query_heads} * c.head_dim;
  params.out_stride = params.q_stride;
  return CudaStatus(kernels::LaunchPrefillAttention(params, stream_), "attention of a prompt");
}

absl::Status CudaLlamaRunner::AttendBatch(int layer, int rows) {
  const ModelConfig& c = model_->config();
  kernels::FourierAttentionParams params = {};
  params.plan = pool_->profile().plan(layer);
  params.batch = rows;
  params.query_heads = c.query_heads;
  params.dtype = kBf16;
  params.scale = Scale(c);
  params.q = q_.data();
  params.out = attention_.data();
  params.schedule = schedules_.Of(layer, rows);
  params.segments = tables_->segments(layer);
  params.pages = tables_->pages(layer);
  params.page_head_stride = int64_t{pool_->segment_tokens()} * c.head_dim;
  params.early_launch = layer > 0;  // tables are made shortly before the first
  params.workspace = attention_workspace_.data();
  params.workspace_bytes = static_cast<int64_t>(attention_workspace_.size());
  return CudaStatus(kernels::LaunchFourierAttention(params, stream_), "attention of a batch");
}

absl::Status CudaLlamaRunner::AttendExactBatch(int layer, int rows) {
  const ModelConfig& c = model_->config();
  kernels::DenseAttentionParams params = {};
  params.batch = rows;
  params.kv_heads = c.kv_heads;
  params.query_heads = c.query_heads;
  params.head_dim = c.head_dim;
  params.scale = Scale(c);
  params.q = q_.as<const uint16_t>();
  params.out = attention_.as<uint16_t>();
  params.pages = tables_->pages(layer);
  params.page_offsets = tables_->page_offsets();
  params.page_head_stride = int64_t{pool_->segment_tokens()} * c.head_dim;
  params.workspace = exact_workspace_.data();
  params.workspace_bytes = static_cast<int64_t>(exact_workspace_.size());
  return CudaStatus(kernels::LaunchDenseAttention(params, stream_), "attention of a batch");
}

absl::Status CudaLlamaRunner::RunLayers(int rows, const Attention& attention) {
  if (absl::Status s = Embed(rows); !s.ok()) return s;
  for (int layer = 0; layer < model_->config().layers; ++layer) {
    if (absl::Status s = BeforeAttention(layer, rows); !s.ok()) return s;
    if (absl::Status s = attention(layer); !s.ok()) return s;
    if (absl::Status s = AfterAttention(layer, rows); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status CudaLlamaRunner::Finish(int first, int rows) {
  const ModelConfig& c = model_->config();
  absl::Status s =
      CudaStatus(kernels::LaunchRmsNorm(x_.as<const float>() + int64_t{first} * c.hidden_size,
                                        model_->final_norm(), static_cast<float>(c.rms_norm_eps),
                                        rows, c.hidden_size, norm_.as<uint16_t>(), stream_),
                 "normalising");
  if (!s.ok()) return s;
  return gemm_->Run(LogitsShape(c, rows), model_->output(), norm_.as<const uint16_t>(),
                    logits_.data(), stream_);
}

absl::Status CudaLlamaRunner::RunChunk(std::span<const int32_t> tokens, DeviceKvCache& cache,
                                       bool with_logits) {
  const int rows = static_cast<int>(tokens.size());
  if (absl::Status s = PrepareProducts(rows, with_logits ? 1 : 0); !s.ok()) return s;
  absl::Status s = tables_->BuildTiles(cache, rows, decoder_.data(), stream_);
  if (!s.ok()) return s;
  tokens_.assign(tokens.begin(), tokens.end());
  positions_.clear();
  row_pages_.clear();
  for (int i = 0; i < rows; ++i) {
    positions_.push_back(static_cast<int32_t>(cache.length() + i));
    row_pages_.push_back(tables_->PageOf(0, cache, cache.length() + i));
  }
  if (absl::Status s = UploadRows(); !s.ok()) return s;
  const int64_t seen = cache.length() + rows;
  s = RunLayers(rows, [&](int layer) { return AttendChunk(layer, rows, seen); });
  if (s.ok() && with_logits) s = Finish(rows - 1, 1);
  // Also after a failure: the cache's places must not be given back while something writes to them.
  const absl::Status ended = CudaStatus(cudaStreamSynchronize(stream_), "computing a prompt");
  if (!s.ok()) return s;
  if (!ended.ok()) return ended;
  return cache.Advance(rows);
}

absl::Status CudaLlamaRunner::CheckTokens(std::span<const int32_t> tokens,
                                          const DeviceKvCache& cache) const {
  if (tokens.empty()) return absl::InvalidArgumentError("tokens is empty; give at least one");
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (absl::Status s = CheckToken(i, tokens[i]); !s.ok()) return s;
  }
  const auto n = static_cast<int64_t>(tokens.size());
  if (absl::Status s = CheckRoom(cache, n); !s.ok()) return s;
  return cache.CheckRoom(n);
}

absl::Status CudaLlamaRunner::Prefill(std::span<const int32_t> tokens, DeviceKvCache& cache,
                                      ForwardOutput* out, Logits logits) {
  if (absl::Status s = Extend(tokens, cache, out, logits); !s.ok()) return s;
  DeviceKvCache* const one = &cache;
  return Seal({&one, 1});
}

absl::Status CudaLlamaRunner::Extend(std::span<const int32_t> tokens, DeviceKvCache& cache,
                                     ForwardOutput* out, Logits logits) {
  if (logits == Logits::kAll) {
    return absl::InvalidArgumentError("logits of every token of a prompt: ask for the last");
  }
  if (absl::Status s = CheckTokens(tokens, cache); !s.ok()) return s;
  const auto n = static_cast<int64_t>(tokens.size());
  if (const int64_t due = cache.SegmentsDue(n); due > pool_->free_slots()) {
    return absl::ResourceExhaustedError(absl::StrCat("a prompt of ", n, " tokens needs ", due,
                                                     " slots for compact segments; of the KV "
                                                     "pool's, ",
                                                     pool_->free_slots(), " are free"));
  }
  if (absl::Status s = cache.Reserve(n); !s.ok()) return s;
  if (absl::Status s = decoder_.Prepare(cache, stream_); !s.ok()) return s;

  for (int64_t first = 0; first < n;) {
    const int64_t count = std::min<int64_t>(options_.chunk_tokens, n - first);
    const bool last = first + count == n;
    absl::Status s = RunChunk(tokens.subspan(first, count), cache, last && logits == Logits::kLast);
    if (!s.ok()) return s;
    first += count;
  }
  out->logits.resize(logits == Logits::kLast ? model_->config().vocab_size : 0);
  return logits_.CopyTo(out->logits.data(), out->logits.size() * sizeof(float));
}

absl::Status CudaLlamaRunner::PrepareStep(std::span<const DecodeRow> rows) {
  if (rows.empty() || rows.size() > static_cast<size_t>(options_.max_batch)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a step of ", rows.size(), " sequences; it must be 1 to ", options_.max_batch));
  }
  std::vector<const DeviceKvCache*> caches;
  int64_t due = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (absl::Status s = CheckToken(i, rows[i].token); !s.ok()) return s;
    if (absl::Status s = CheckRoom(*rows[i].cache, 1); !s.ok()) return s;
    caches.push_back(rows[i].cache);
    due += rows[i].cache->SegmentsDue(1);
  }
  std::vector<const DeviceKvCache*> sorted = caches;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
    return absl::InvalidArgumentError("a cache stands in the batch twice");
  }
  if (due > pool_->free_slots()) {
    return absl::ResourceExhaustedError(absl::StrCat("this step makes ", due,
                                                     " segments compact; of the KV pool's slots, ",
                                                     pool_->free_slots(), " are free"));
  }
  for (const DecodeRow& row : rows) {
    if (absl::Status s = row.cache->Reserve(1); !s.ok()) return s;
  }
  if (absl::Status s = tables_->Build(caches, 1, stream_); !s.ok()) return s;
  tokens_.clear();
  positions_.clear();
  row_pages_.clear();
  for (size_t i = 0; i < rows.size(); ++i) {
    tokens_.push_back(rows[i].token);
    positions_.push_back(static_cast<int32_t>(caches[i]->length()));
    row_pages_.push_back(tables_->PageOf(i, *caches[i], caches[i]->length()));
  }
  return absl::OkStatus();
}

absl::Status CudaLlamaRunner::EnqueueStep(int rows, bool exact) {
  const ModelConfig& c = model_->config();
  exact = exact && kernels::DenseAttentionFits(c.kv_heads, c.query_heads, c.head_dim);
  absl::Status s;
  if (!exact) {
    s = schedules_.Enqueue(rows, tables_->segment_offsets(), tables_->page_offsets(), stream_);
    if (!s.ok()) return s;
  }
  s = RunLayers(rows, [&](int layer) {
    return exact ? AttendExactBatch(layer, rows) : AttendBatch(layer, rows);
  });
  if (s.ok()) s = Finish(0, rows);
  if (!s.ok()) return s;
  return CudaStatus(
      kernels::LaunchChooseTokens(logits_.as<const float>(), rows, model_->config().vocab_size,
                                  choices_.as<kernels::TokenChoice>(), stream_),
      "choosing tokens");
}

absl::Status CudaLlamaRunner::LaunchStep(int rows, bool exact) {
  Graph& graph = graphs_[{rows, exact}];
  if (!graph.warm) {
    // Not captured: this loads every kernel, which a capture must not do.
    absl::Status s = PrepareProducts(rows, rows);
    if (s.ok()) s = EnqueueStep(rows, exact);
    graph.warm = s.ok();
    return s;
  }
  if (graph.executable == nullptr) {
    absl::Status s = CudaStatus(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
                                "capturing a decode step");
    if (!s.ok()) return s;
    s = EnqueueStep(rows, exact);
    cudaGraph_t captured = nullptr;
    const absl::Status ended =
        CudaStatus(cudaStreamEndCapture(stream_, &captured), "capturing a decode step");
    if (s.ok()) s = ended;
    if (s.ok()) {
      s = CudaStatus(cudaGraphInstantiate(&graph.executable, captured, 0),
                     "making a graph of a decode step");
    }
    if (captured != nullptr) cudaGraphDestroy(captured);
    if (!s.ok()) return s;
  }
  return CudaStatus(cudaGraphLaunch(graph.executable, stream_), "launching a decode step");
}

absl::Status CudaLlamaRunner::DecodeStep(std::span<const DecodeRow> rows, DecodeOutput* out,
                                         bool with_logits) {
  if (absl::Status s = PrepareStep(rows); !s.ok()) return s;
  const int n = static_cast<int>(rows.size());
  absl::Status s = UploadRows();
  const bool exact = std::all_of(rows.begin(), rows.end(),
                                 [](const DecodeRow& row) { return row.cache->slots().empty(); });
  if (s.ok()) s = LaunchStep(n, exact);
  const absl::Status ended = CudaStatus(cudaStreamSynchronize(stream_), "computing a decode step");
  if (!s.ok()) return s;
  if (!ended.ok()) return ended;

  out->choices.resize(rows.size());
  s = choices_.CopyTo(out->choices.data(), out->choices.size() * sizeof(kernels::TokenChoice));
  if (!s.ok()) return s;
  out->logits.resize(with_logits ? rows.size() * model_->config().vocab_size : 0);
  s = logits_.CopyTo(out->logits.data(), out->logits.size() * sizeof(float));
  if (!s.ok()) return s;
  std::vector<DeviceKvCache*> caches;
  for (const DecodeRow& row : rows) {
    if (s = row.cache->Advance(1); !s.ok()) return s;
    caches.push_back(row.cache);
  }
  return Seal(caches);
}

}  // namespace fourierkv
