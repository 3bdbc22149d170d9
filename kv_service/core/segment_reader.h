// Verified reading of segments in the form somebody wants, making the form if need be.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kv_service/core/form_planner.h"
#include "kv_service/core/patience.h"
#include "kv_service/core/segment_store.h"
#include "kv_service/core/segment_want.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

class ComputeBackend;
class TieredStore;

enum class MissingReason : uint8_t {
  kNone = 0,         // it is there
  kNotStored = 1,    // unknown key
  kFormNotHeld = 2,  // none of the wanted forms is held or can be made
  kCorrupt = 3,      // stored bytes were damaged; they have been dropped
  kErrorBound = 4,   // none of the wanted forms is within the wanted error
  kNotFetched =
      5,  // a tier beneath memory holds it, and did not give it in time or for lack of room
};

const char* MissingReasonName(MissingReason reason);

// A segment opened for reading. Keeps the bytes it needs alive.
struct OpenSegment {
  StoredSegment segment;                   // identity; only the key if it is not stored
  SegmentForm form = SegmentForm::kExact;  // what ReadLayer gives
  FormPtr source;                          // what it is read or made from
  MissingReason missing = MissingReason::kNone;
  // Over all parts of what ReadLayer gives. With kErrorBound, the largest error of the best form.
  float mean_relative_error = 0;
  float max_relative_error = 0;
  bool error_unknown = false;  // measured only by ReadLayer

  // Bytes that ReadLayer will give over `layers` layers from `first_layer`, headers included; the
  // most if LOSSLESS is to be made; 0 if missing. Requires layers that the segment has.
  int64_t Bytes(int first_layer, int layers) const;
};

// What a check of memory found.
struct MemoryCheck {
  int64_t segments = 0;
  int64_t forms = 0;
  int64_t bytes = 0;  // of these
  int64_t damaged_forms = 0;
};

struct LayerRead {
  MissingReason missing = MissingReason::kNone;
  BlobPtr k;  // null if missing
  BlobPtr v;
};

// Thread safe. Store and backend must outlive it.
//
// COMPACT or ARCHIVED of a full segment that is not held is encoded: at Open for all layers and
// kept in the store if the budget has room, else layer by layer at ReadLayer without keeping it. A
// segment whose values cannot be ARCHIVED (form_maker.h) is given in the next wanted form. Other
// forms that are not held are made at ReadLayer of what form_planner.h says, and never kept. Made
// blobs that are not kept are charged to `scratch` while their reader holds them.
class SegmentReader {
 public:
  // Called for every damaged blob, from the reading thread.
  using CorruptionLog = std::function<void(const BlockKey& key, SegmentForm form, int layer,
                                           Part part, const absl::Status& status)>;

  SegmentReader(SegmentStore* store, ComputeBackend* backend, std::shared_ptr<MemoryBudget> scratch,
                CorruptionLog log = nullptr, TieredStore* tiers = nullptr);

  // One result per want: the first form in `forms` order that is held, in memory or in a tier; else
  // the first that can be made; in either case the first of these within the want's error. What
  // tiers do not give in `tier_patience` is missing. InvalidArgument if a want names no form or no
  // error that can be; ResourceExhausted if the budget has no room to encode a segment whose error
  // matters; Patience::Check when that is over.
  absl::StatusOr<std::vector<OpenSegment>> Open(
      std::span<const SegmentWant> wants, const Patience& tier_patience = absl::InfiniteFuture(),
      const Patience& patience = absl::InfiniteFuture());

  // K and V of `layer` of every open segment, checksums verified, made in one call of the backend.
  // A segment found damaged becomes missing = kCorrupt in `open` too and stays so for later layers.
  // OutOfRange for a layer that an open segment does not have; ResourceExhausted if `scratch` has
  // no room; Patience::Check when that is over.
  absl::StatusOr<std::vector<LayerRead>> ReadLayer(
      std::span<OpenSegment> open, int layer, const Patience& patience = absl::InfiniteFuture());

  // The segment's compact form, encoded and stored now if need be. NotFound if the segment is not
  // stored; FailedPrecondition for a tail or without a profile; DataLoss if the stored bytes are
  // damaged (and dropped); ResourceExhausted if the budget has no room.
  absl::StatusOr<FormPtr> EnsureCompact(const BlockKey& key);

  // Verifies everything that memory holds, as ReadLayer does, and touches nothing. What comes
  // meanwhile may be left out. Patience::Check.
  absl::StatusOr<MemoryCheck> CheckMemory(const Patience& patience);

 private:
  // Decides what `open`, which is stored, is read from.
  absl::Status Choose(const SegmentWant& want, OpenSegment& open, const Patience& patience);
  // What `way` makes of all layers, kept in the store.
  absl::StatusOr<FormPtr> Make(const StoredSegment& segment, const FormWay& way,
                               const Patience& patience);
  // Drops a damaged form, and returns DataLoss.
  absl::Status Drop(const StoredSegment& segment, const FormPtr& form, int layer, Part part,
                    const absl::Status& why);
  // Whether all blobs of a form are whole.
  absl::StatusOr<bool> CheckForm(const StoredSegment& segment, const FormPtr& form,
                                 const Patience& patience);
  // The blob if it is whole and the right one; otherwise drops its form and returns DataLoss.
  absl::StatusOr<FormPart> Verify(const StoredSegment& segment, const FormPtr& form, int layer,
                                  Part part);

  SegmentStore* store_;
  ComputeBackend* backend_;
  std::shared_ptr<MemoryBudget> scratch_;
  CorruptionLog log_;
  TieredStore* tiers_;  // null: memory alone
};

}  // namespace fourierkv
