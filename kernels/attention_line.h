// Who does what in attention: the batch's work as one line of cost, cut into equal stretches, one
// for each worker. For the device and, without CUDA, for the host.

#pragma once

#include <cstdint>

#include "kernels/attention_entry.h"

#ifdef __CUDACC__
#define FOURIERKV_HOST_DEVICE __host__ __device__
#else
#define FOURIERKV_HOST_DEVICE
#endif

namespace fourierkv::kernels {

// The work of one (sequence, group) is two pieces: its compact units, then its pages. On the line
// sequences follow each other, in a sequence its groups, in a group the pieces, in a piece the
// units, each as long as its cost. A unit belongs to the stretch that it begins in; every stretch
// is at least as long as a unit, so none is without work.
class AttentionLine {
 public:
  struct Piece {
    int32_t sequence;
    int32_t group;  // of the sequence
    int32_t kind;   // 0: units, 1: pages
    int64_t start;  // on the line
    int64_t units;  // or pages
    int32_t cost;   // of one
    int32_t item;   // index of the sequence's first in the table

    FOURIERKV_HOST_DEVICE int64_t End() const { return start + units * cost; }
    // The first unit that begins at `x` or behind it; `units` if none does.
    FOURIERKV_HOST_DEVICE int64_t UnitFrom(int64_t x) const {
      if (x <= start) return 0;
      const int64_t unit = (x - start + cost - 1) / cost;
      return unit < units ? unit : units;
    }
  };

  // Offsets are [batch + 1], increasing, first 0; null stands for none at all.
  FOURIERKV_HOST_DEVICE AttentionLine(const AttentionScheduleShape& shape,
                                      const int32_t* segment_offsets, const int32_t* page_offsets)
      : shape_(shape),
        segment_offsets_(segment_offsets),
        page_offsets_(page_offsets),
        groups_(shape.kv_heads * GroupsOfHead(shape)) {
    total_ = Before(shape.batch) * groups_;
    stretches_ = total_ == 0 ? 0 : CountStretches();
  }

  // Entries of a schedule.
  static FOURIERKV_HOST_DEVICE int64_t Entries(const AttentionScheduleShape& shape) {
    return shape.workers + int64_t{2} * shape.batch * shape.kv_heads * GroupsOfHead(shape);
  }

  FOURIERKV_HOST_DEVICE int stretches() const { return stretches_; }

  FOURIERKV_HOST_DEVICE bool Empty(int sequence) const {
    return Before(sequence) == Before(sequence + 1);
  }

  // Entry `index`. `some_empty`: whether any sequence is.
  FOURIERKV_HOST_DEVICE AttentionEntry Make(int64_t index, bool some_empty) const {
    AttentionEntry entry = {};
    entry.next = -1;
    if (index < shape_.workers) {
      const int worker = static_cast<int>(index);
      if (worker < stretches_) {
        const int64_t x = Start(worker);
        Piece piece = At(x);
        int64_t unit = piece.UnitFrom(x);
        if (unit == piece.units) {
          piece = At(piece.End());
          unit = 0;
        }
        Fill(piece, unit, worker, &entry);
      }
      if (some_empty) entry.flags |= kSomeEmpty;
      return entry;
    }
    const int64_t number = (index - shape_.workers) / 2;
    const int sequence = static_cast<int>(number / groups_);
    const Piece piece = PieceOf(sequence, static_cast<int>(number % groups_),
                                static_cast<int>((index - shape_.workers) % 2));
    if (Empty(sequence)) entry.flags = kEmptyTokens;
    if (piece.units > 0 && !BeginsList(piece)) Fill(piece, 0, StretchOf(piece.start), &entry);
    return entry;
  }

 private:
  static FOURIERKV_HOST_DEVICE int GroupsOfHead(const AttentionScheduleShape& shape) {
    return (shape.query_heads / shape.kv_heads + kGroupHeads - 1) / kGroupHeads;
  }

  FOURIERKV_HOST_DEVICE int64_t Segments(int b) const {
    return segment_offsets_ != nullptr ? segment_offsets_[b] : 0;
  }
  FOURIERKV_HOST_DEVICE int64_t Pages(int b) const {
    return page_offsets_ != nullptr ? page_offsets_[b] : 0;
  }
  // Cost of a group of all sequences before b.
  FOURIERKV_HOST_DEVICE int64_t Before(int b) const {
    return Segments(b) * shape_.units_per_segment * shape_.unit_cost + Pages(b) * shape_.page_cost;
  }

  // Where a stretch begins.
  FOURIERKV_HOST_DEVICE int64_t Start(int stretch) const { return total_ * stretch / stretches_; }
  // The stretch that `x` lies in.
  FOURIERKV_HOST_DEVICE int StretchOf(int64_t x) const {
    return static_cast<int>(((x + 1) * stretches_ - 1) / total_);
  }

  // Every warp should have a unit at least. Where there are few, fewer workers have less to merge.
  // Groups of equally long sequences are cut alike, and no stretch has parts of two, if the number
  // of stretches is a multiple of all groups: if that makes none longer by a unit.
  FOURIERKV_HOST_DEVICE int CountStretches() const {
    const bool units = Segments(shape_.batch) > 0;
    const bool pages = Pages(shape_.batch) > 0;
    const int64_t unit = units ? shape_.unit_cost : shape_.page_cost;
    const int64_t page = pages ? shape_.page_cost : shape_.unit_cost;
    const int64_t largest = shape_.worker_warps * (unit > page ? unit : page);
    const int64_t smallest = shape_.worker_warps * (unit > page ? page : unit);
    int64_t most = shape_.workers;
    if (total_ < 3 * smallest * most) most = most * 2 / 3;
    if (most > total_ / largest) most = total_ / largest;
    if (most < 1) most = 1;
    const auto rounds = [&](int64_t stretches) {
      return (total_ + stretches * largest - 1) / (stretches * largest);
    };
    const int64_t even = most - most % (static_cast<int64_t>(shape_.batch) * groups_);
    if (even > 0 && 16 * (most - even) < most && rounds(even) == rounds(most)) most = even;
    return static_cast<int>(most);
  }

  FOURIERKV_HOST_DEVICE Piece PieceOf(int sequence, int group, int kind) const {
    const int64_t before = Before(sequence);
    const int64_t whole = Before(sequence + 1) - before;
    const int64_t units = (Segments(sequence + 1) - Segments(sequence)) * shape_.units_per_segment;
    Piece piece;
    piece.sequence = sequence;
    piece.group = group;
    piece.kind = kind;
    piece.start = before * groups_ + group * whole + (kind == 0 ? 0 : units * shape_.unit_cost);
    piece.units = kind == 0 ? units : Pages(sequence + 1) - Pages(sequence);
    piece.cost = kind == 0 ? shape_.unit_cost : shape_.page_cost;
    piece.item = static_cast<int32_t>(kind == 0 ? Segments(sequence) : Pages(sequence));
    return piece;
  }

  // The piece that has `x`, of [0, total).
  FOURIERKV_HOST_DEVICE Piece At(int64_t x) const {
    int low = 0, high = shape_.batch - 1;  // the last sequence that begins at x or before it
    while (low < high) {
      const int middle = low + (high - low + 1) / 2;
      if (Before(middle) * groups_ <= x) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    const int64_t before = Before(low);
    const int64_t whole = Before(low + 1) - before;
    const int group = static_cast<int>((x - before * groups_) / whole);
    const Piece units = PieceOf(low, group, 0);
    return x < units.End() ? units : PieceOf(low, group, 1);
  }

  // Whether the piece's first unit is the first of its stretch.
  FOURIERKV_HOST_DEVICE bool BeginsList(const Piece& piece) const {
    if (piece.start == 0) return true;
    return piece.start - At(piece.start - 1).cost < Start(StretchOf(piece.start));
  }

  FOURIERKV_HOST_DEVICE int64_t IndexOf(const Piece& piece) const {
    return shape_.workers + 2 * (static_cast<int64_t>(piece.sequence) * groups_ + piece.group) +
           piece.kind;
  }

  // What `worker` does from `unit` of the piece on.
  FOURIERKV_HOST_DEVICE void Fill(const Piece& piece, int64_t unit, int worker,
                                  AttentionEntry* entry) const {
    const int groups_of_head = GroupsOfHead(shape_);
    const int heads = shape_.query_heads / shape_.kv_heads;
    const int inner = piece.group % groups_of_head * kGroupHeads;
    const int64_t end = Start(worker + 1);
    const int64_t last = piece.UnitFrom(end);
    entry->flags = piece.kind == 1 ? kPages : 0;
    entry->kv_head = piece.group / groups_of_head;
    entry->heads = heads - inner < kGroupHeads ? heads - inner : kGroupHeads;
    entry->row = piece.sequence * shape_.query_heads + entry->kv_head * heads + inner;
    entry->item = piece.item;
    entry->first = static_cast<int32_t>(unit);
    entry->count = static_cast<int32_t>(last - unit);
    if (piece.End() < end && piece.End() < total_) {
      entry->next = static_cast<int32_t>(IndexOf(At(piece.End())));
    }
    for (int kind = 0; kind < 2; ++kind) {
      const Piece own = PieceOf(piece.sequence, piece.group, kind);
      if (own.units == 0) continue;
      const int first = StretchOf(own.start);
      entry->parts[kind] = StretchOf(own.End() - own.cost) - first + 1;
      entry->records[kind] = BeginsList(own) ? first : static_cast<int32_t>(IndexOf(own));
      entry->workers[kind] = first;
      if (kind == piece.kind) entry->part = worker - first;
    }
    entry->group = piece.sequence * groups_ + piece.group;
  }

  const AttentionScheduleShape shape_;
  const int32_t* const segment_offsets_;
  const int32_t* const page_offsets_;
  const int32_t groups_;  // of a sequence
  int64_t total_;
  int32_t stretches_;
};

}  // namespace fourierkv::kernels
