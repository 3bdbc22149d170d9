// Who does what: the batch's work as one line of cost, cut into equal stretches, one for each
// block.

#pragma once

#include <cstdint>

#include "kernels/fourier_attention.h"

namespace fourierkv::kernels {

// a / b for b > 0; quick when both fit in 32 bits, as they nearly always do.
__device__ __forceinline__ int64_t Quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// The work of one (sequence, group of up to 8 query heads of a KV head) is two pieces: its compact
// units, then its pages. On the line of cost, sequences follow each other, in a sequence its
// groups, in a group the pieces.
struct WorkLine {
  const int32_t* segment_offsets;  // as FourierAttentionParams; null stands for none
  const int32_t* page_offsets;
  int batch;
  int groups;  // in a sequence
  int units_per_segment;
  int unit_cost;
  int page_cost;
  int stretches;

  __device__ __forceinline__ int64_t Segments(int b) const {
    return segment_offsets != nullptr ? segment_offsets[b] : 0;
  }
  __device__ __forceinline__ int64_t Pages(int b) const {
    return page_offsets != nullptr ? page_offsets[b] : 0;
  }
  // Cost of a group of all sequences before b.
  __device__ __forceinline__ int64_t Before(int b) const {
    return Segments(b) * units_per_segment * unit_cost + Pages(b) * page_cost;
  }
  __device__ __forceinline__ int64_t Total() const { return Before(batch) * groups; }
  // Of a unit or a page, of those that there are.
  __device__ __forceinline__ int64_t LargestCost() const {
    return max(Segments(batch) > 0 ? unit_cost : 0, Pages(batch) > 0 ? page_cost : 0);
  }
  __device__ __forceinline__ int64_t SmallestCost() const {
    return min(Segments(batch) > 0 ? unit_cost : page_cost,
               Pages(batch) > 0 ? page_cost : unit_cost);
  }
  __device__ __forceinline__ int64_t Start(int64_t total, int stretch) const {
    return Quotient(total * stretch, stretches);
  }
  // The stretch that cost `x` lies in.
  __device__ __forceinline__ int StretchOf(int64_t total, int64_t x) const {
    return static_cast<int>(Quotient((x + 1) * stretches - 1, total));
  }
};

struct Piece {
  int sequence;
  int group;
  bool pages;
  int64_t start;  // on the line
  int64_t end;
  int cost;  // of a unit

  // Units that begin in [from, to) of the line.
  __device__ __forceinline__ int UnitAt(int64_t x) const {
    return static_cast<int>(Quotient(x - start + cost - 1, cost));
  }
};

__device__ __forceinline__ Piece PieceOf(const WorkLine& line, int sequence, int group,
                                         bool pages) {
  const int64_t before = line.Before(sequence);
  const int64_t whole = line.Before(sequence + 1) - before;
  const int64_t units =
      (line.Segments(sequence + 1) - line.Segments(sequence)) * line.units_per_segment;
  Piece piece;
  piece.sequence = sequence;
  piece.group = group;
  piece.pages = pages;
  const int64_t begin = before * line.groups + group * whole;
  const int64_t middle = begin + units * line.unit_cost;
  piece.start = pages ? middle : begin;
  piece.end = pages ? begin + whole : middle;
  piece.cost = pages ? line.page_cost : line.unit_cost;
  return piece;
}

// Where results of a stretch's part of a piece are kept until all parts are there: pieces within
// one stretch have a place of their own; of others, a stretch has at most the one it begins with
// and the one it ends with.
__device__ __forceinline__ int64_t PartialOf(const WorkLine& line, int64_t total,
                                             const Piece& piece, int stretch) {
  const int first = line.StretchOf(total, piece.start);
  const int last = line.StretchOf(total, piece.end - 1);
  if (first == last) {
    return 2 * line.stretches +
           2 * (static_cast<int64_t>(piece.sequence) * line.groups + piece.group) + piece.pages;
  }
  return 2 * stretch + (piece.start > line.Start(total, stretch) ? 1 : 0);
}

}  // namespace fourierkv::kernels
