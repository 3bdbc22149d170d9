// What a plan's buffer holds. A warp of the attention kernel handles one unit, 256 tokens of one
// head of one compact segment, in steps; each step needs one copy from the payload, which was
// started some steps before.

#pragma once

#include <cstdint>

namespace fourierkv::kernels {

// A unit's tokens in the order of the format's 4-bit words: with P = S / 8, unit s of a segment has
// the tokens t = P k + 32 s + q, k < 8, q < 32 (and q < 16 if S = 128, where half a unit is void).
// Lanes are numbered 4 r + c, as the operands of mma instructions are: in scores, lane (r, c) has
// the q = 4 r + b, b < 4, of its channels; in outputs the q = 8 c + b and 8 c + 4 + b.
inline constexpr int kUnitTokens = 256;
inline constexpr int kChunk = 16;  // channels
inline constexpr int kMaxHeadDim = 256;
inline constexpr int kMaxBasisBlocks = 4;

enum StepKind : uint8_t {
  kIdle = 0,   // nothing: keeps copies far enough behind what they overwrite
  kSmall = 1,  // coefficients, scales and offsets of all bands of the part
  // Others are the bits of 16 resident channels; with 8 and 16 bits, of part of their tokens.
};

struct alignas(16) Step {
  uint32_t source;  // offset of the chunk's words or bytes in the payload
  uint32_t high;    // 3 bits: of the upper bits
  uint16_t scale;   // of the chunk's first channel, in the small data
  uint16_t zero;
  uint8_t kind;   // StepKind, or 2, 3, 4, 8, 16
  uint8_t valid;  // channels, 1 to 16
  uint8_t chunk;  // of the part's chunks
  uint8_t run;    // 8 bits: 0 or 1, which half of the tokens; 16 bits: 0 to 3
};
static_assert(sizeof(Step) == 16);

// One contiguous piece of small data.
struct SmallCopy {
  uint32_t source;  // offset in the payload, a multiple of 16
  uint16_t target;  // offset in the part's small data, a multiple of 16
  uint16_t bytes;   // a multiple of 16
};

enum BandKind : uint8_t { kSpectral8, kSpectral16, kScaled, kPlain };

// A band, as far as it is worked on from small data.
struct SmallBand {
  uint8_t kind;
  uint8_t chunks;
  uint8_t first_chunk;
  uint8_t coefficients;  // M
  uint16_t channels;
  uint16_t scale;  // offsets in the small data
  uint16_t data;   // coefficients; of kScaled the offsets
  uint16_t reserved;
};
static_assert(sizeof(SmallBand) == 12);

// K or V of a head whose bands are at most one of coefficients, M <= 8, and then at most one of
// residents: int8 and 4 or 8 bits, or bf16 both. Contiguous in the payload: small data, then
// residents.
struct UniformPart {
  uint32_t source;        // offset in the payload
  uint16_t small_bytes;   // scales, coefficients, scales, offsets; a multiple of 16
  uint16_t channels;      // spectral ones
  uint16_t coefficients;  // M
  uint16_t data;          // offset of the coefficients in the small data; scales, if any, are at 0
  uint16_t residents;     // channels
  uint16_t scale;         // of the residents, in the small data; their offsets follow; if any
  uint16_t chunks;        // of coefficients
  uint16_t resident_chunks;
  uint16_t reserved[2];
};
static_assert(sizeof(UniformPart) == 24);

// Orders of queries of uniform heads: which channels of K a lane has. In a plan, for each head,
// groups of i16[8 lanes][4], the same for every 8 lanes, which have one query head; -1: none. Of
// coefficients a group is 32 channels, two chunks, which even and odd rows have (of 16 bits: 16
// channels); of residents 16.

// Which token of a unit of uniform heads is row `row` of tile `tile`, of 16 of 16 tokens: as lanes
// find them in words of 4 bits, in bytes, and in halves.
constexpr int UniformToken(int bits, int tile, int row) {
  const int r = row % 8;
  const int half = row / 8;
  if (bits == 4) return 32 * (2 * (tile % 4) + half) + 4 * r + tile / 4;
  if (bits == 8) return 128 * half + 16 * r + tile;
  return 128 * (tile / 8) + 64 * half + 8 * r + tile % 8;
}

// What the weight of a unit's largest score is as an integer of 16 bits; with room for rounding.
inline constexpr float kWholeWeight = 64000.0f;
inline constexpr float kLogWholeWeight = 15.965784284662087f;  // log2

// A head's program; what follows it are Step[steps], SmallCopy[k_copies + v_copies], SmallBand[
// k_bands + v_bands], K's channels. Copied to shared memory as it is.
struct HeadProgram {
  uint32_t bytes;   // of all this, a multiple of 16
  uint16_t steps;   // of K, then of V; each starts with a kSmall step
  uint16_t v_step;  // the first of V
  uint16_t k_copies;
  uint16_t v_copies;
  uint16_t k_bands;
  uint16_t v_bands;
  uint16_t k_chunks;
  uint16_t v_chunks;
  uint16_t k_blocks;     // of 16 columns of the basis that K's coefficients need beyond the first
  uint16_t v_blocks;     // column; V needs one at least, for the softmax's sum
  uint16_t k_residents;  // the first chunk of K's residents
  uint16_t reserved;
  uint32_t copies;  // offset of SmallCopy[] from the program's start
  uint32_t bands;   // offset of SmallBand[]
  // i16[chunks][16]: channel ids, -1 where there is none. Those of K, here, as four values of lane
  // column c = 0, four of c = 1, ...; those of V, in the plan, as they stand in the bands.
  uint32_t k_channels;  // offset from the program's start
  uint32_t v_channels;  // offset in the plan
  uint32_t k_rotation;  // offset in the plan of f32 U[head_dim][head_dim]; 0: none
  uint32_t v_rotation;  // transposed
  uint32_t padding[3];
  UniformPart uniform_k;  // if the plan is uniform
  UniformPart uniform_v;
};
static_assert(sizeof(HeadProgram) == 112);

// Basis values are stored as fp16, times 16 where k is odd: 4-bit integers of odd k are used where
// they stand, four bits up. Column 0, a constant, is left out of scores (float takes care of it)
// and is 1 in weights, which gives the sum of the softmax.

}  // namespace fourierkv::kernels
