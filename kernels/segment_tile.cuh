// Tokens by channels of one head of one segment in shared memory, in 16-bit values, such that rows
// of eight channels (for tensor cores), and one channel at many tokens (for integers), are read
// without bank conflicts.

#pragma once

#include <cstdint>

#include "kernels/codec_values.cuh"

namespace fourierkv::kernels::codec {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

// Channels of a tile with all tokens of a segment: at most 64 KiB.
__host__ __device__ constexpr int SliceChannels(int segment_tokens) {
  return segment_tokens <= 256 ? 128 : 32768 / segment_tokens;
}
// Pieces of 16 bytes from row to row: an odd number, so that eight rows stand in different banks.
__host__ __device__ constexpr int TilePitch(int channels) { return channels / 8 | 1; }
// Every eighth row is moved on by a piece, so that every fourth row of 32 stands in different
// banks.
__host__ __device__ constexpr int TileBytes(int tokens, int pitch) {
  return (tokens * pitch + tokens / 8) * 16;
}

// Segment tokens and pitch, as constants unless they are 0.
template <int kTokens, int kPitch>
struct TileShape {
  static constexpr int kRows = kTokens;
  static constexpr int kChannels = kPitch / 2 * 16;  // that rows are made for; 0 if not known

  int32_t run_time_tokens;
  int32_t run_time_pitch;

  __host__ __device__ __forceinline__ int tokens() const {
    return kTokens != 0 ? kTokens : run_time_tokens;
  }
  __host__ __device__ __forceinline__ int pitch() const {
    return kPitch != 0 ? kPitch : run_time_pitch;
  }
  // Where row t starts, in bytes. Additive in t if one term is a multiple of 8.
  __device__ __forceinline__ int Row(int t) const { return (t * pitch() + (t >> 3)) * 16; }
  // Lanes that share a channel of a whole segment, 32 tokens each.
  __device__ __forceinline__ int lanes() const { return tokens() / 32; }
};

// Which 32 tokens of a channel a lane has. Those of a stored word, where words are of one lane:
//   2 to 4 bits: value v is token v * lanes + lane          word e of lane: e * lanes + lane
//   8, 16 bits:  value v is token 4 (v / 4 * lanes + lane) + v % 4    word w: w * lanes + lane
template <int kBits>
__device__ __forceinline__ int TokenOf(int v, int lane, int lanes) {
  return kBits <= 4 ? v * lanes + lane : 4 * (v / 4 * lanes + lane) + v % 4;
}

// Their rows in a tile.
template <int kBits, class Shape>
class LaneRows {
 public:
  __device__ __forceinline__ LaneRows(const Shape& shape, int lane) {
    const int lanes = shape.lanes();
    stride_ = shape.Row(kPeriod * lanes);
#pragma unroll
    for (int v = 0; v < kPeriod; ++v) first_[v] = shape.Row(TokenOf<kBits>(v, lane, lanes));
  }
  __device__ __forceinline__ int Row(int v) const {
    return first_[v % kPeriod] + v / kPeriod * stride_;
  }

 private:
  static constexpr int kPeriod = kBits <= 4 ? 2 : 4;  // a multiple of 8 tokens apart
  int first_[kPeriod];
  int stride_;
};

// Calls copy(place in a tile in bytes, place in rows of `stride` values) for every piece of 16
// bytes of `rows` rows of `channels` (a multiple of 8) values, every thread of the block for its
// own.
template <class Shape, class Copy>
__device__ __forceinline__ void ForEachPiece(const Shape& shape, int stride, int rows, int channels,
                                             const Copy& copy) {
  const int pieces = channels / 8;
  int t = static_cast<int>(threadIdx.x) / pieces;
  int c = static_cast<int>(threadIdx.x) % pieces;
  const int rows_on = kThreads / pieces;
  if (rows_on % 8 == 0 && kThreads % pieces == 0) {  // every step is the same
    int place = shape.Row(t) + 16 * c;
    int from = t * stride + 8 * c;
    const int place_on = shape.Row(rows_on);
    const int from_on = rows_on * stride;
#pragma unroll 4
    for (; t < rows; t += rows_on) {
      copy(place, from);
      place += place_on;
      from += from_on;
    }
    return;
  }
  const int pieces_on = kThreads % pieces;
  while (t < rows) {
    copy(shape.Row(t) + 16 * c, t * stride + 8 * c);
    t += rows_on;
    c += pieces_on;
    if (c >= pieces) {
      c -= pieces;
      ++t;
    }
  }
}

// Starts copying rows that are `stride` values apart to a tile.
template <class Shape>
__device__ __forceinline__ void StartLoad(const Shape& shape, uint32_t tile, const uint16_t* from,
                                          int stride, int rows, int channels) {
  if constexpr (Shape::kChannels == 128) {
    if (channels == Shape::kChannels && stride == Shape::kChannels) {  // with constants only
      constexpr int kPieces = Shape::kChannels / 8;
      constexpr int kRowsOn = kThreads / kPieces;
      const int t = static_cast<int>(threadIdx.x) / kPieces;
      const int c = static_cast<int>(threadIdx.x) % kPieces;
      tile += shape.Row(t) + 16 * c;
      from += t * Shape::kChannels + 8 * c;
#pragma unroll
      for (int on = 0; on < Shape::kRows; on += kRowsOn) {
        CopyAsync16(tile + shape.Row(on), from + on * Shape::kChannels);
      }
      CommitCopies();
      return;
    }
  }
  ForEachPiece(shape, stride, rows, channels,
               [tile, from](int place, int at) { CopyAsync16(tile + place, from + at); });
  CommitCopies();
}

}  // namespace fourierkv::kernels::codec
