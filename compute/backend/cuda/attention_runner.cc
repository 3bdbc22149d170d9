#include "compute/backend/cuda/attention_runner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"
#include "kernels/decode_segments.h"

namespace fourierkv::cuda {
namespace {

constexpr int kMaxGroup = 16;  // of query heads that the attention kernel takes for a KV head
constexpr int64_t kMaxDecode = 65535;

size_t AlignUp(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Cuts a buffer into aligned pieces.
class Pieces {
 public:
  template <typename T>
  size_t Take(size_t count) {
    const size_t at = bytes_;
    bytes_ += AlignUp(count * sizeof(T));
    return at;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

// The query heads of every KV head dealt to `sets` sequences that read the same cache, since a KV
// head may have more of them than the kernel takes. What is left over repeats the last.
class HeadSets {
 public:
  explicit HeadSets(const AttentionArgs& args)
      : kv_heads_(args.kv.kv_heads),
        head_dim_(args.kv.head_dim),
        group_(args.query_heads / args.kv.kv_heads),
        sets_((group_ + kMaxGroup - 1) / kMaxGroup),
        in_set_((group_ + sets_ - 1) / sets_) {}

  int sets() const { return sets_; }
  int query_heads() const { return kv_heads_ * in_set_; }
  int64_t vectors() const { return static_cast<int64_t>(sets_) * query_heads(); }

  // Calls visit(index of the vector in the sets' order, query head) for all vectors.
  template <typename Visit>
  void ForEach(const Visit& visit) const {
    int64_t at = 0;
    for (int set = 0; set < sets_; ++set) {
      for (int h = 0; h < kv_heads_; ++h) {
        for (int i = 0; i < in_set_; ++i) {
          visit(at++, h * group_ + std::min(set * in_set_ + i, group_ - 1));
        }
      }
    }
  }
  std::vector<float> Gather(const float* q) const {
    std::vector<float> gathered(vectors() * head_dim_);
    ForEach([&](int64_t at, int head) {
      std::copy_n(q + static_cast<int64_t>(head) * head_dim_, head_dim_,
                  gathered.data() + at * head_dim_);
    });
    return gathered;
  }
  void Scatter(const std::vector<float>& from, int width, float* to) const {
    ForEach([&](int64_t at, int head) {
      std::copy_n(from.data() + at * width, width, to + static_cast<int64_t>(head) * width);
    });
  }

 private:
  const int kv_heads_;
  const int head_dim_;
  const int group_;
  const int sets_;
  const int in_set_;
};

// `times` copies of `once`, and where each begins.
template <typename T>
std::vector<T> Repeat(const std::vector<T>& once, int times, std::vector<int32_t>* offsets) {
  std::vector<T> all;
  offsets->assign(1, 0);
  for (int i = 0; i < times; ++i) {
    all.insert(all.end(), once.begin(), once.end());
    offsets->push_back(static_cast<int32_t>(all.size()));
  }
  return all;
}

void AddTiles(const std::vector<kernels::PageRef>& pages, int64_t head_stride, int64_t* tokens,
              std::vector<kernels::DenseTile>* tiles) {
  static_assert(kernels::kPageTokens == kernels::kDenseTileTokens, "a page is a tile");
  for (const kernels::PageRef& page : pages) {
    tiles->push_back({page.k, page.v, head_stride, *tokens, page.tokens, 0});
    *tokens += page.tokens;
  }
}

absl::Status TooMuchForTheKernel() {
  return absl::UnimplementedError("the attention kernel does not take such sizes");
}

}  // namespace

absl::StatusOr<std::unique_ptr<AttentionRunner>> AttentionRunner::Create(StagedUpload* upload,
                                                                         LayoutCache* layouts,
                                                                         int64_t kept_bytes) {
  auto runner = std::unique_ptr<AttentionRunner>(new AttentionRunner);
  runner->upload_ = upload;
  runner->layouts_ = layouts;
  runner->contents_ = std::make_unique<DeviceContents>(upload, kept_bytes);
  absl::StatusOr<std::unique_ptr<StagedDownload>> download = StagedDownload::Create();
  if (!download.ok()) return download.status();
  runner->download_ = *std::move(download);
  absl::StatusOr<Stream> stream = Stream::Create();
  if (!stream.ok()) return stream.status();
  runner->stream_ = *std::move(stream);
  return runner;
}

void AttentionRunner::Clear() {
  contents_->Clear();
  vectors_.Clear();
  decoded_.Clear();
  workspace_.Clear();
  schedule_.Clear();
}

absl::Status AttentionRunner::Attend(const AttentionArgs& args) {
  contents_->BeginCall();
  if (args.query_tokens == 1 && args.scale > 0) {
    absl::StatusOr<const kernels::AttentionPlanView*> plan = FindPlan(args);
    if (!plan.ok()) return plan.status();
    if (*plan != nullptr) {
      absl::Status status = AttendCompact(args, **plan);
      if (!absl::IsUnimplemented(status)) return status;
    }
  }
  return AttendDecoded(args);
}

absl::StatusOr<const kernels::AttentionPlanView*> AttentionRunner::FindPlan(
    const AttentionArgs& args) {
  const LayerKv& kv = args.kv;
  if (kv.compact.empty()) return layouts_->ExactPlan(kv.kv_heads, kv.head_dim);
  return layouts_->Plan(*kv.k_layout, *kv.v_layout);
}

absl::Status AttentionRunner::FindSegments(const LayerKv& kv,
                                           std::vector<kernels::SegmentRef>* segments) {
  for (const CompactBlock& block : kv.compact) {
    absl::StatusOr<kernels::SegmentRef> segment = contents_->Segment(kv, block);
    if (!segment.ok()) return segment.status();
    segments->push_back(*segment);
  }
  return absl::OkStatus();
}

absl::Status AttentionRunner::FindPages(const LayerKv& kv, std::vector<kernels::PageRef>* pages) {
  for (const ExactBlock& block : kv.exact) {
    if (absl::Status s = contents_->AddPages(kv, block, pages); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status AttentionRunner::AttendCompact(const AttentionArgs& args,
                                            const kernels::AttentionPlanView& plan) {
  const LayerKv& kv = args.kv;
  std::vector<kernels::SegmentRef> segments;
  std::vector<kernels::PageRef> pages;
  if (absl::Status s = FindSegments(kv, &segments); !s.ok()) return s;
  if (absl::Status s = FindPages(kv, &pages); !s.ok()) return s;

  const HeadSets sets(args);
  std::vector<int32_t> segment_offsets, page_offsets;
  segments = Repeat(segments, sets.sets(), &segment_offsets);
  pages = Repeat(pages, sets.sets(), &page_offsets);
  const std::vector<float> q = sets.Gather(args.q);

  Pieces pieces;
  const size_t q_at = pieces.Take<float>(q.size());
  const size_t out_at = pieces.Take<float>(q.size());
  const size_t lse_at = pieces.Take<float>(sets.vectors());
  const size_t segments_at = pieces.Take<kernels::SegmentRef>(segments.size());
  const size_t segment_offsets_at = pieces.Take<int32_t>(segment_offsets.size());
  const size_t pages_at = pieces.Take<kernels::PageRef>(pages.size());
  const size_t page_offsets_at = pieces.Take<int32_t>(page_offsets.size());
  if (auto room = vectors_.Reserve(pieces.bytes()); !room.ok()) return room.status();
  std::byte* const base = vectors_.data();
  const auto upload = [&](const auto& values, size_t at) {
    return upload_->Copy(values.data(), values.size() * sizeof(values[0]), base + at);
  };
  if (absl::Status s = upload(q, q_at); !s.ok()) return s;
  if (absl::Status s = upload(segments, segments_at); !s.ok()) return s;
  if (absl::Status s = upload(segment_offsets, segment_offsets_at); !s.ok()) return s;
  if (absl::Status s = upload(pages, pages_at); !s.ok()) return s;
  if (absl::Status s = upload(page_offsets, page_offsets_at); !s.ok()) return s;

  const int64_t needed = kernels::FourierAttentionWorkspace(plan, sets.sets(), sets.query_heads());
  if (needed < 0) return TooMuchForTheKernel();
  absl::StatusOr<bool> fresh = workspace_.Reserve(needed);
  if (!fresh.ok()) return fresh.status();
  if (*fresh) {
    absl::Status s = CudaStatus(
        cudaMemsetAsync(workspace_.data(), 0, workspace_.size(), stream_.get()), "clearing memory");
    if (!s.ok()) return s;
  }

  kernels::FourierAttentionParams params = {};
  params.dtype = static_cast<kernels::ElementType>(kv.dtype);
  const cudaError_t shaped = kernels::FourierAttentionShape(plan, sets.sets(), sets.query_heads(),
                                                            params.dtype, &params.schedule.shape);
  if (shaped == cudaErrorInvalidValue) return TooMuchForTheKernel();
  if (absl::Status s = CudaStatus(shaped, "looking at the attention kernel"); !s.ok()) return s;
  params.schedule.bytes = kernels::AttentionScheduleBytes(params.schedule.shape);
  if (auto room = schedule_.Reserve(params.schedule.bytes); !room.ok()) return room.status();
  params.schedule.data = schedule_.data();
  params.plan = plan;
  params.batch = sets.sets();
  params.query_heads = sets.query_heads();
  params.float_io = true;
  params.scale = args.scale;
  params.q = base + q_at;
  params.out = base + out_at;
  params.lse = reinterpret_cast<float*>(base + lse_at);
  if (!segments.empty()) {
    params.segments = reinterpret_cast<const kernels::SegmentRef*>(base + segments_at);
  }
  if (!pages.empty()) params.pages = reinterpret_cast<const kernels::PageRef*>(base + pages_at);
  params.page_head_stride = DeviceContents::PageHeadStride(kv);
  params.workspace = workspace_.data();
  params.workspace_bytes = static_cast<int64_t>(workspace_.size());
  if (absl::Status s = upload_->Delay(stream_.get()); !s.ok()) return s;
  cudaError_t launched = kernels::LaunchAttentionSchedule(
      params.schedule, reinterpret_cast<const int32_t*>(base + segment_offsets_at),
      reinterpret_cast<const int32_t*>(base + page_offsets_at), stream_.get());
  if (launched == cudaSuccess) {
    launched = kernels::LaunchFourierAttention(params, stream_.get());
  }
  if (launched == cudaErrorInvalidValue) {
    cudaGetLastError();  // so that the next launch is not blamed for it
    return TooMuchForTheKernel();
  }
  absl::Status s = CudaStatus(launched, "attention to compact segments");
  if (!s.ok()) return s;

  std::vector<float> out(q.size()), lse(sets.vectors());
  s = download_->Copy(base + out_at, out.size() * sizeof(float), out.data(), stream_.get());
  if (!s.ok()) return s;
  sets.Scatter(out, kv.head_dim, args.out);
  if (args.lse == nullptr) return absl::OkStatus();
  s = download_->Copy(base + lse_at, lse.size() * sizeof(float), lse.data(), stream_.get());
  if (s.ok()) sets.Scatter(lse, 1, args.lse);
  return s;
}

absl::Status AttentionRunner::Decode(const LayerKv& kv, Part part,
                                     std::span<const kernels::SegmentRef> segments,
                                     std::byte* tables, uint16_t* to) {
  const PartLayout& layout = part == Part::kK ? *kv.k_layout : *kv.v_layout;
  absl::StatusOr<const kernels::PartView*> view = layouts_->Part(layout);
  if (!view.ok()) return view.status();
  const int64_t head_size = static_cast<int64_t>(layout.segment_tokens) * kv.head_dim;
  std::vector<const uint8_t*> payloads;
  std::vector<uint16_t*> dense;
  for (size_t i = 0; i < segments.size(); ++i) {
    payloads.push_back(part == Part::kK ? segments[i].k : segments[i].v);
    dense.push_back(to + static_cast<int64_t>(i) * kv.kv_heads * head_size);
  }
  const size_t bytes = segments.size() * sizeof(void*);
  std::byte* const dense_table = tables + AlignUp(bytes);
  if (absl::Status s = upload_->Copy(payloads.data(), bytes, tables); !s.ok()) return s;
  if (absl::Status s = upload_->Copy(dense.data(), bytes, dense_table); !s.ok()) return s;
  if (absl::Status s = upload_->Delay(stream_.get()); !s.ok()) return s;
  const auto count = static_cast<int64_t>(segments.size());
  for (int64_t first = 0; first < count; first += kMaxDecode) {
    kernels::DecodeSegmentsParams params = {};
    params.part = **view;
    params.payloads = reinterpret_cast<const uint8_t* const*>(tables) + first;
    params.dense = reinterpret_cast<uint16_t* const*>(dense_table) + first;
    params.head_stride = head_size;
    params.dtype = static_cast<kernels::ElementType>(kv.dtype);
    params.segments = static_cast<int32_t>(std::min(kMaxDecode, count - first));
    absl::Status s =
        CudaStatus(kernels::LaunchDecodeSegments(params, stream_.get()), "decoding segments");
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status AttentionRunner::AttendDecoded(const AttentionArgs& args) {
  const LayerKv& kv = args.kv;
  std::vector<kernels::SegmentRef> segments;
  std::vector<kernels::PageRef> pages, decoded_pages;
  if (absl::Status s = FindSegments(kv, &segments); !s.ok()) return s;
  if (absl::Status s = FindPages(kv, &pages); !s.ok()) return s;

  const int64_t segment_tokens = segments.empty() ? 0 : kv.k_layout->segment_tokens;
  const int64_t head_size = segment_tokens * kv.head_dim;
  const size_t part_size = segments.size() * kv.kv_heads * head_size;
  if (auto room = decoded_.Reserve(2 * part_size * sizeof(uint16_t)); !room.ok()) {
    return room.status();
  }
  auto* const decoded = reinterpret_cast<uint16_t*>(decoded_.data());
  for (size_t i = 0; i < segments.size(); ++i) {
    for (int64_t t = 0; t < segment_tokens; t += kernels::kPageTokens) {
      const uint16_t* const k =
          decoded + static_cast<int64_t>(i) * kv.kv_heads * head_size + t * kv.head_dim;
      decoded_pages.push_back({k, k + part_size, kernels::kPageTokens, 0});
    }
  }
  std::vector<kernels::DenseTile> tiles;
  int64_t tokens = 0;
  AddTiles(decoded_pages, head_size, &tokens, &tiles);
  AddTiles(pages, DeviceContents::PageHeadStride(kv), &tokens, &tiles);

  const int64_t width = static_cast<int64_t>(args.query_heads) * kv.head_dim;
  const size_t q_size = args.query_tokens * width;
  const size_t lse_size = static_cast<size_t>(args.query_tokens) * args.query_heads;
  Pieces pieces;
  const size_t q_at = pieces.Take<float>(q_size);
  const size_t out_at = pieces.Take<float>(q_size);
  const size_t lse_at = pieces.Take<float>(lse_size);
  const size_t tiles_at = pieces.Take<kernels::DenseTile>(tiles.size());
  size_t tables_at[2];
  for (size_t& at : tables_at) {
    at = pieces.Take<std::byte>(2 * AlignUp(segments.size() * sizeof(void*)));
  }
  if (auto room = vectors_.Reserve(pieces.bytes()); !room.ok()) return room.status();
  std::byte* const base = vectors_.data();
  if (!segments.empty()) {
    for (Part part : kParts) {
      const size_t p = part == Part::kK ? 0 : 1;
      absl::Status s = Decode(kv, part, segments, base + tables_at[p], decoded + p * part_size);
      if (!s.ok()) return s;
    }
  }
  absl::Status s = upload_->Copy(args.q, q_size * sizeof(float), base + q_at);
  if (!s.ok()) return s;
  s = upload_->Copy(tiles.data(), tiles.size() * sizeof(tiles[0]), base + tiles_at);
  if (!s.ok()) return s;

  kernels::PrefillAttentionParams params = {};
  params.kv_heads = kv.kv_heads;
  params.query_heads = args.query_heads;
  params.head_dim = kv.head_dim;
  params.query_tokens = args.query_tokens;
  params.dtype = static_cast<kernels::ElementType>(kv.dtype);
  params.float_io = true;
  params.scale = args.scale;
  params.tiles = reinterpret_cast<const kernels::DenseTile*>(base + tiles_at);
  params.tile_count = static_cast<int32_t>(tiles.size());
  params.tokens = tokens;
  params.q = base + q_at;
  params.out = base + out_at;
  params.q_stride = params.out_stride = width;
  params.lse = args.lse == nullptr ? nullptr : reinterpret_cast<float*>(base + lse_at);
  if (s = upload_->Delay(stream_.get()); !s.ok()) return s;
  s = CudaStatus(kernels::LaunchPrefillAttention(params, stream_.get()), "attention to tokens");
  if (!s.ok()) return s;
  s = download_->Copy(base + out_at, q_size * sizeof(float), args.out, stream_.get());
  if (!s.ok() || args.lse == nullptr) return s;
  return download_->Copy(base + lse_at, lse_size * sizeof(float), args.lse, stream_.get());
}

}  // namespace fourierkv::cuda
