// What the segment store takes in, hands out and lists.

#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "compute/base/geometry.h"
#include "compute/codec/segment_blob.h"
#include "kv_service/core/blob_buffer.h"
#include "kv_service/core/block_key.h"
#include "kv_service/core/cache_namespace.h"

namespace fourierkv {

// A value for every form of a segment; values that are no form share one of their own.
template <typename T>
class PerForm {
 public:
  T& operator[](SegmentForm form) { return values_[Index(form)]; }
  const T& operator[](SegmentForm form) const { return values_[Index(form)]; }

 private:
  static size_t Index(SegmentForm form) {
    const auto value = static_cast<size_t>(form);
    return value <= kLastForm ? value : 0;
  }

  std::array<T, kLastForm + 1> values_{};
};

// The forms that a store may hold, usually smallest first. DENSE is only ever made.
inline constexpr SegmentForm kHeldForms[] = {SegmentForm::kArchived, SegmentForm::kCompact,
                                             SegmentForm::kLossless, SegmentForm::kExact};

// A bound on relative errors that everything satisfies.
inline constexpr float kNoErrorBound = std::numeric_limits<float>::infinity();

struct FormPart {
  BlobPtr blob;
  float relative_error = 0;  // as in its header
};

// One form of one segment: K and V of every layer. Immutable.
class FormBlobs {
 public:
  // `parts` at layer * 2 + part, all sealed and not null.
  FormBlobs(SegmentForm form, std::vector<FormPart> parts);

  SegmentForm form() const { return form_; }
  int layers() const { return static_cast<int>(blobs_.size() / 2); }
  const BlobPtr& blob(int layer, Part part) const {
    return blobs_[static_cast<size_t>(layer) * 2 + static_cast<size_t>(part)];
  }
  int64_t bytes() const { return bytes_; }  // of all blobs, headers included
  float mean_relative_error() const { return mean_relative_error_; }
  float max_relative_error() const { return max_relative_error_; }

 private:
  SegmentForm form_;
  std::vector<BlobPtr> blobs_;
  int64_t bytes_ = 0;
  float mean_relative_error_ = 0;
  float max_relative_error_ = 0;
};

using FormPtr = std::shared_ptr<const FormBlobs>;

// A segment and the forms of it that somebody holds. Holding a form keeps its bytes alive after the
// store let it go.
struct StoredSegment {
  BlockKey key;
  BlockKey parent;  // the namespace's root key for segment 0
  std::shared_ptr<const NamespaceContext> context;
  int64_t index = 0;  // position in the sequence, in segments
  int tokens = 0;     // S, or less for a tail
  bool tail = false;
  int64_t capacity = 0;    // of a whole sequence: how many tokens it may grow to; else 0
  PerForm<FormPtr> forms;  // null where not held
  // Exact data beside a compact form of larger error is kept as long as the segment.
  float error_bound = kNoErrorBound;
  // How long it is kept at least, and then missing unless somebody holds it.
  absl::Time expires = absl::InfiniteFuture();

  // The form that has every bit as received: EXACT, LOSSLESS or null.
  const FormPtr& exact_data() const;
  bool HoldsAnything() const;
  int64_t bytes() const;  // of all forms
  int64_t first_token() const { return index * context->ns.segment_tokens; }
};

// Size and quality of one form; bytes = 0 if it is not held.
struct FormSummary {
  int64_t bytes = 0;
  float mean_relative_error = 0;
  float max_relative_error = 0;
};

// One row of a listing: a snapshot without the bytes.
struct SegmentSummary {
  BlockKey key;
  BlockKey parent;
  std::shared_ptr<const NamespaceContext> context;
  int64_t index = 0;
  int tokens = 0;
  bool tail = false;
  PerForm<FormSummary> forms;
  int children = 0;
  int holds = 0;  // leases and running puts that protect it
  absl::Time last_use;
  int tier = 0;  // 0: memory's; else one more than the number of the tier beneath whose it is

  int64_t bytes() const;  // of all forms
};

struct FormTotals {
  int64_t count = 0;
  int64_t bytes = 0;
};

// Totals over a store.
struct StoreStats {
  int64_t segments = 0;
  int64_t tails = 0;
  PerForm<FormTotals> forms;
  int64_t leases = 0;
};

}  // namespace fourierkv
