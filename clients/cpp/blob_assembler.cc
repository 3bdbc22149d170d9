#include "clients/cpp/blob_assembler.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/support/convert.h"

namespace fourierkv {

void BlobAssembler::Expect(const v1::GetPlan& plan) {
  for (const v1::SegmentPlan& segment : plan.segments()) most_.push_back(segment.bytes());
}

absl::StatusOr<std::optional<FetchedBlob>> BlobAssembler::Add(const v1::BlobPiece& piece) {
  const auto damaged = [&](absl::string_view what) {
    return absl::DataLossError(absl::StrCat("fetched segment ", piece.request_index(), ", layer ",
                                            piece.layer(), ": ", what));
  };
  if (piece.request_index() >= static_cast<uint32_t>(request_.segments_size())) {
    return damaged("not one that was asked for");
  }
  const Key key{piece.request_index(), piece.layer(), piece.part()};
  if (piece.offset() == 0) {
    const uint64_t planned =
        piece.request_index() < most_.size() ? most_[piece.request_index()] : 0;
    if (piece.blob_bytes() < kBlobHeaderBytes ||
        piece.blob_bytes() > std::min(planned, kMaxBlobBytes)) {
      return damaged(absl::StrCat("a blob of ", piece.blob_bytes(), " bytes is out of bounds"));
    }
    if (!open_.emplace(key, Open{AlignedBuffer(piece.blob_bytes()), 0}).second) {
      return damaged("the blob began twice");
    }
  }
  const auto it = open_.find(key);
  if (it == open_.end() || piece.offset() != it->second.filled ||
      piece.data().size() > it->second.buffer.size() - it->second.filled || piece.data().empty()) {
    return damaged("a piece of the blob is missing or out of order");
  }
  Open& open = it->second;
  std::memcpy(open.buffer.data() + open.filled, piece.data().data(), piece.data().size());
  open.filled += piece.data().size();
  if (open.filled < open.buffer.size()) return std::nullopt;
  FetchedBlob blob;
  blob.request_index = static_cast<int>(piece.request_index());
  blob.bytes = std::move(open.buffer);
  open_.erase(it);
  absl::StatusOr<BlobHeader> header = OpenBlob(blob.bytes.span());
  if (!header.ok()) return damaged(absl::string_view(header.status().message()));
  blob.header = *header;
  if (blob.header.layer != piece.layer() || ToProto(blob.header.part) != piece.part()) {
    return damaged("the blob is of another layer or part than announced");
  }
  if (blob.header.block_key.ToString() != request_.segments(blob.request_index).block_key()) {
    return damaged("the blob is of another segment than asked for");
  }
  if (const float bound = request_.max_relative_error();
      bound > 0 && blob.header.relative_error > bound) {
    return damaged(absl::StrCat("its relative error is ", blob.header.relative_error,
                                "; no more than ", bound, " was asked for"));
  }
  return blob;
}

}  // namespace fourierkv
