// Who does what in attention: the batch's work as one line of cost, cut into equal stretches, one
// for each worker. For the device and, without CUDA, for the host.

#pragma once

#include <cstdint>

#include "kernels/attention_entry.h"

namespace fourierkv::kernels {

// The work of one (sequence, group) is two pieces: its compact units, then its pages. On the line
// sequences follow each other, in a sequence its groups, in a group the pieces, in a piece the
// units, each as long as its cost. A unit belongs to the stretch that it begins in; every stretch
// is at least as long as a unit, so none is without work.
//
// A multiprocessor has consecutive stretches; in turn they are those of its blocks, so that every
// few of them are done by one worker of each. Of three blocks the last one to come is served last
// there, and gets less to do, by what was measured on an H200: so all end at about the same time.
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
    if (total_ == 0) return;
    stretches_ = CountStretches();
    const int workers = WorkersOfBlock(shape);
    own_ = (stretches_ + shape.processors - 1) / shape.processors;
    if (own_ < workers) own_ = workers;
    blocks_ = (own_ + workers - 1) / workers;
    const int64_t groups = static_cast<int64_t>(shape.batch) * groups_;
    favour_ = shape.worker_warps == 1 && blocks_ == 3 && own_ % blocks_ == 0 &&
              (stretches_ % groups != 0 || stretches_ / groups % blocks_ == 0) &&
              total_ >= 8 * stretches_ * LargestCost();
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
      const int stretch = StretchOfWorker(static_cast<int>(index));
      if (stretch >= 0) {
        const int64_t x = Start(stretch);
        Piece piece = At(x);
        int64_t unit = piece.UnitFrom(x);
        if (unit == piece.units) {
          piece = At(piece.End());
          unit = 0;
        }
        Fill(piece, unit, stretch, &entry);
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

  // What the worker with this list has; negative: nothing.
  FOURIERKV_HOST_DEVICE int StretchOfWorker(int worker) const {
    if (stretches_ == 0) return -1;
    const int workers = WorkersOfBlock(shape_);
    const int block = worker / workers;
    const int processor = block % shape_.processors;
    const int turn = block / shape_.processors;
    if (turn >= blocks_) return -1;
    const int stretch = FirstOf(processor) + worker % workers * blocks_ + turn;
    return stretch < FirstOf(processor + 1) ? stretch : -1;
  }
  // The first stretch of a multiprocessor, and which has a stretch.
  FOURIERKV_HOST_DEVICE int FirstOf(int processor) const {
    return Least(own_ * processor, stretches_);
  }
  FOURIERKV_HOST_DEVICE int ProcessorOf(int stretch) const { return stretch / own_; }

  // The lengths of all stretches before one, in 64ths of a usual one: 65, 65 and 62 in turn.
  FOURIERKV_HOST_DEVICE int64_t Lengths(int stretch) const {
    return 64 * stretch + (favour_ ? stretch % blocks_ : 0);
  }
  // Where a stretch begins.
  FOURIERKV_HOST_DEVICE int64_t Start(int stretch) const {
    return total_ * Lengths(stretch) / Lengths(stretches_);
  }
  // The stretch that `x` lies in.
  FOURIERKV_HOST_DEVICE int StretchOf(int64_t x) const {
    const int64_t before = ((x + 1) * Lengths(stretches_) - 1) / total_;
    if (!favour_) return static_cast<int>(before / 64);
    const int first = static_cast<int>(before / (64 * blocks_)) * blocks_;
    int turn = blocks_ - 1;
    while (turn > 0 && Lengths(first + turn) > before) --turn;
    return first + turn;
  }

  FOURIERKV_HOST_DEVICE int64_t LargestCost() const {
    const int64_t unit = Segments(shape_.batch) > 0 ? shape_.unit_cost : 0;
    const int64_t page = Pages(shape_.batch) > 0 ? shape_.page_cost : 0;
    return shape_.worker_warps * (unit > page ? unit : page);
  }

  // Every warp should have a unit at least. Where there are few, fewer workers have less to merge;
  // most of all, if each group has so few records that they are merged at once. Groups of equally
  // long sequences are cut alike, and no stretch has parts of two, if the number of stretches is a
  // multiple of all groups.
  FOURIERKV_HOST_DEVICE int CountStretches() const {
    // As unit_cost, measured on an H200.
    constexpr int64_t kMerging = 40;    // what merging twice costs
    constexpr int64_t kBeginning = 65;  // what another head costs its worker
    const int64_t groups = static_cast<int64_t>(shape_.batch) * groups_;
    const int64_t largest = LargestCost();
    const int64_t pages = Pages(shape_.batch) > 0 ? shape_.page_cost : kMaxCost;
    const int64_t units = Segments(shape_.batch) > 0 ? shape_.unit_cost : kMaxCost;
    const int64_t smallest = shape_.worker_warps * (units < pages ? units : pages);
    const auto time = [&](int64_t stretches) {
      return (total_ + stretches * largest - 1) / (stretches * largest) * largest;
    };
    int64_t most = shape_.workers;
    if (total_ < 3 * smallest * most) most = most * 2 / 3;
    if (most > total_ / largest) most = total_ / largest;
    if (most < 1) most = 1;
    const int64_t at_once = kMergedParts * WorkersOfBlock(shape_) * groups;
    if (at_once < most && time(at_once) <= time(most) + kMerging) most = at_once;
    const int64_t even = most - most % groups;
    if (even > 0 && time(even) <= time(most) + kBeginning) most = even;
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

  // How the stretches of a piece become parts.
  struct Parts {
    int first;      // stretch
    int joined;     // the last one that joins with others
    int count;      // of parts
    bool one_more;  // whether the stretch behind `joined` is a part of its own, as it goes on
  };

  FOURIERKV_HOST_DEVICE Parts PartsOf(const Piece& piece) const {
    Parts parts;
    parts.first = StretchOf(piece.start);
    parts.joined = StretchOf(piece.End() - piece.cost);
    parts.one_more = Continues(piece, parts.joined);
    if (parts.one_more) --parts.joined;
    parts.count = JoinedBefore(parts.first, parts.joined + 1) + (parts.one_more ? 1 : 0);
    return parts;
  }
  // Whether the stretch, which has the piece's last unit, has something else behind it.
  FOURIERKV_HOST_DEVICE bool Continues(const Piece& piece, int stretch) const {
    return piece.End() < Start(stretch + 1) && piece.End() < total_;
  }
  // Parts that stretches first .. end - 1 join to: one for each block that has some.
  FOURIERKV_HOST_DEVICE int JoinedBefore(int first, int end) const {
    if (end <= first) return 0;
    if (shape_.worker_warps > 1) return end - first;
    const int begun = ProcessorOf(first);
    const int processor = ProcessorOf(end - 1);
    if (begun == processor) return Least(blocks_, end - first);
    return Least(blocks_, FirstOf(begun + 1) - first) + blocks_ * (processor - begun - 1) +
           Least(blocks_, end - FirstOf(processor));
  }
  // Which of them a stretch joins to.
  FOURIERKV_HOST_DEVICE int JoinedPart(int first, int stretch) const {
    if (shape_.worker_warps > 1) return stretch - first;
    const int begun = ProcessorOf(first);
    const int processor = ProcessorOf(stretch);
    if (begun == processor) return (stretch - first) % blocks_;
    return Least(blocks_, FirstOf(begun + 1) - first) + blocks_ * (processor - begun - 1) +
           (stretch - FirstOf(processor)) % blocks_;
  }
  // Which of the block's workers have stretches of [first, last] like this one.
  FOURIERKV_HOST_DEVICE int32_t Team(int first, int last, int stretch) const {
    const int processor = ProcessorOf(stretch);
    const int turn = (stretch - FirstOf(processor)) % blocks_;
    int32_t team = 0;
    for (int worker = 0; worker < WorkersOfBlock(shape_); ++worker) {
      const int other = FirstOf(processor) + worker * blocks_ + turn;
      const bool own = other < FirstOf(processor + 1) && first <= other && other <= last;
      if (own) team |= 1 << worker;
    }
    return team;
  }
  static FOURIERKV_HOST_DEVICE int Least(int a, int b) { return a < b ? a : b; }

  // What the worker of `stretch` does from `unit` of the piece on.
  FOURIERKV_HOST_DEVICE void Fill(const Piece& piece, int64_t unit, int stretch,
                                  AttentionEntry* entry) const {
    const int groups_of_head = GroupsOfHead(shape_);
    const int heads = shape_.query_heads / shape_.kv_heads;
    const int inner = piece.group % groups_of_head * kGroupHeads;
    const int64_t last = piece.UnitFrom(Start(stretch + 1));
    entry->flags = piece.kind == 1 ? kPages : 0;
    entry->kv_head = piece.group / groups_of_head;
    entry->heads = Least(heads - inner, kGroupHeads);
    entry->row = piece.sequence * shape_.query_heads + entry->kv_head * heads + inner;
    entry->item = piece.item;
    entry->first = static_cast<int32_t>(unit);
    entry->count = static_cast<int32_t>(last - unit);
    const bool continues = Continues(piece, stretch);
    if (continues) entry->next = static_cast<int32_t>(IndexOf(At(piece.End())));
    entry->group = piece.sequence * groups_ + piece.group;
    for (int kind = 0; kind < 2; ++kind) {
      const Piece own = PieceOf(piece.sequence, piece.group, kind);
      if (own.units == 0) continue;
      const Parts parts = PartsOf(own);
      entry->parts[kind] = parts.count;
      // No piece has more parts than stretches, and the next one begins in its last or behind it.
      entry->records[kind] = parts.first + 2 * entry->group + kind;
      if (kind != piece.kind) continue;
      entry->counter = parts.first;
      if (continues) {
        entry->part = parts.count - 1;
        entry->team = Team(stretch, stretch, stretch);
      } else {
        entry->part = JoinedPart(parts.first, stretch);
        entry->team = Team(parts.first, parts.joined, stretch);
      }
    }
  }

  const AttentionScheduleShape shape_;
  const int32_t* const segment_offsets_;
  const int32_t* const page_offsets_;
  const int32_t groups_;  // of a sequence
  int64_t total_;
  int32_t stretches_ = 0;
  int32_t own_ = 0;      // stretches of a multiprocessor; the last ones may have fewer
  int32_t blocks_ = 0;   // of it that have some
  bool favour_ = false;  // whether the first of these have more
};

}  // namespace fourierkv::kernels
