#include "compute/codec/archive_symbols.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "compute/codec/archive_kernels.h"
#include "compute/codec/range_coder.h"

namespace fourierkv {
namespace {

// First frequency of every octave, and the end.
constexpr int kOctaveStart[kArchiveOctaves + 1] = {0, 1, 2, 4, 8, 16, 32, 64};

// Magnitudes up to kUnary - 1 are coded as a row of "is it more?"; the rest as Exp-Golomb.
constexpr int kUnary = 14;
constexpr int kUnaryContexts = 6;  // of which the last serves all further steps
constexpr int kMaxPrefix = 15;     // of Exp-Golomb: 2^15 values from kUnary on
constexpr int kNeighbours = 4;     // how strong the surroundings are: none to much
constexpr int kOctaveKinds = 3;    // of zero flags: octaves of 2, of 4, and of more frequencies

constexpr int kChannelContexts = 2 * kArchiveClasses;
constexpr int kOctaveContexts = 8 * kArchiveClasses;
constexpr int kZeroContexts = kNeighbours * kOctaveKinds * kArchiveClasses;
constexpr int kMoreContexts = kUnaryContexts * kNeighbours * kArchiveClasses;

constexpr int kFirstOctave = kChannelContexts;
constexpr int kFirstZero = kFirstOctave + kOctaveContexts;
constexpr int kFirstMore = kFirstZero + kZeroContexts;
constexpr int kFirstSign = kFirstMore + kMoreContexts;
constexpr int kFirstPrefix = kFirstSign + 2;
constexpr int kContexts = kFirstPrefix + kMaxPrefix;

// Ends a code: a damaged one is unlikely to have it there.
constexpr uint32_t kEndMark = 0xa5;
constexpr int kEndMarkBits = 8;

class Encoder {
 public:
  static constexpr bool kReads = false;

  Encoder(std::span<const uint16_t> probabilities, std::vector<std::byte>* out) : range_(out) {
    for (int i = 0; i < kContexts; ++i) bits_[i] = AdaptiveBit(probabilities[i]);
  }
  bool Bit(int context, bool bit) {
    range_.Put(bit, bits_[context]);
    return bit;
  }
  uint32_t Raw(int count, uint32_t value) {
    range_.PutRaw(value, count);
    return value;
  }
  void Finish() { range_.Finish(); }

 private:
  RangeEncoder range_;
  AdaptiveBit bits_[kContexts];
};

class Decoder {
 public:
  static constexpr bool kReads = true;

  Decoder(std::span<const uint16_t> probabilities, std::span<const std::byte> code) : range_(code) {
    for (int i = 0; i < kContexts; ++i) bits_[i] = AdaptiveBit(probabilities[i]);
  }
  bool Bit(int context, bool) { return range_.Get(bits_[context]); }
  uint32_t Raw(int count, uint32_t) { return range_.GetRaw(count); }
  bool AtEnd() const { return range_.AtEnd(); }

 private:
  RangeDecoder range_;
  AdaptiveBit bits_[kContexts];
};

class Counter {
 public:
  static constexpr bool kReads = false;

  explicit Counter(std::span<ArchiveBitCounts> counts) : counts_(counts) {}
  bool Bit(int context, bool bit) {
    ++(bit ? counts_[context].ones : counts_[context].zeros);
    return bit;
  }
  uint32_t Raw(int, uint32_t value) { return value; }

 private:
  std::span<ArchiveBitCounts> counts_;
};

// What later symbols are predicted from: one channel's magnitudes, at most 2, and which octaves of
// each block hold anything.
class Surroundings {
 public:
  explicit Surroundings(int blocks) : magnitudes_(blocks * kStride), octaves_(blocks) {}

  // Of a block: [-2, kArchiveBlock), zeros before the first.
  uint8_t* magnitudes(int block) { return magnitudes_.data() + block * kStride + kBefore; }
  uint8_t& octaves(int block) { return octaves_[block]; }
  void Clear() {
    std::fill(magnitudes_.begin(), magnitudes_.end(), uint8_t{0});
    std::fill(octaves_.begin(), octaves_.end(), uint8_t{0});
  }
  // Takes the magnitudes of a whole channel.
  void Load(const int16_t* values) {
    for (size_t block = 0; block < octaves_.size(); ++block) {
      archive::ClampedMagnitudes(values + block * kArchiveBlock, kArchiveBlock,
                                 magnitudes(static_cast<int>(block)));
    }
  }

 private:
  static constexpr int kBefore = 8;
  static constexpr int kStride = kBefore + kArchiveBlock;
  std::vector<uint8_t> magnitudes_;
  std::vector<uint8_t> octaves_;
};

// One description of the code serves encoder, decoder and counter: they differ in where a bit comes
// from.
template <class Coder>
class SymbolCoder {
 public:
  using Value = std::conditional_t<Coder::kReads, int16_t, const int16_t>;

  SymbolCoder(const ArchiveSymbolShape& shape, Coder* coder)
      : shape_(shape), coder_(*coder), own_(shape.blocks), previous_(shape.blocks) {}

  void Run(Value* values) {
    const size_t size = static_cast<size_t>(shape_.blocks) * kArchiveBlock;
    bool previous_active = false;
    for (int j = 0; j < shape_.channels; ++j, values += size) {
      const uint8_t* classes = shape_.classes.data() + static_cast<size_t>(j) * kArchiveOctaves;
      const int strongest = *std::max_element(classes, classes + kArchiveOctaves);
      bool active = false;
      if constexpr (Coder::kReads) {
        std::fill_n(values, size, int16_t{0});
      } else {
        active = !archive::AllZero(values, static_cast<int64_t>(size));
      }
      active = coder_.Bit(2 * strongest + (previous_active ? 1 : 0), active);
      previous_active = active;
      if (active) {
        if constexpr (Coder::kReads) {
          own_.Clear();
        } else {
          own_.Load(values);
        }
        for (int block = 0; block < shape_.blocks; ++block) {
          Block(block, classes, values + static_cast<size_t>(block) * kArchiveBlock);
        }
        own_is_clear_ = false;
      } else if (!own_is_clear_) {
        own_.Clear();
        own_is_clear_ = true;
      }
      std::swap(own_, previous_);
      std::swap(own_is_clear_, previous_is_clear_);
    }
  }

 private:
  void Block(int block, const uint8_t* classes, Value* values) {
    const int beside = previous_.octaves(block);
    const int before = block > 0 ? own_.octaves(block - 1) : 0;
    int found = 0;
    bool lower = false;
    for (int octave = 0; octave < kArchiveOctaves; ++octave) {
      bool significant = false;
      if constexpr (!Coder::kReads) significant = AnyIn(octave, own_.magnitudes(block));
      const bool earlier = block > 0 ? (before >> octave & 1) != 0 : lower;
      const int context = kFirstOctave + 8 * classes[octave] + (earlier ? 1 : 0) + (lower ? 2 : 0) +
                          (beside >> octave & 1) * 4;
      significant = coder_.Bit(context, significant);
      lower = significant;
      if (!significant) continue;
      found |= 1 << octave;
      Octave(block, octave, classes[octave], values);
    }
    own_.octaves(block) = static_cast<uint8_t>(found);
  }

  static bool AnyIn(int octave, const uint8_t* magnitudes) {
    const int start = kOctaveStart[octave];
    const int end = kOctaveStart[octave + 1];
    if (end - start < 8) return std::any_of(magnitudes + start, magnitudes + end, NotZero);
    uint64_t any = 0;
    for (int f = start; f < end; f += 8) {
      uint64_t eight;
      std::memcpy(&eight, magnitudes + f, 8);
      any |= eight;
    }
    return any != 0;
  }
  static bool NotZero(uint8_t x) { return x != 0; }

  void Octave(int block, int octave, int strength, Value* values) {
    static constexpr uint8_t kLevel[9] = {0, 1, 2, 2, 3, 3, 3, 3, 3};
    uint8_t* const own = own_.magnitudes(block);
    const uint8_t* const beside = previous_.magnitudes(block);
    const uint8_t* const before = block > 0 ? own_.magnitudes(block - 1) : kNothing;
    const int end = kOctaveStart[octave + 1];
    const int kind = kFirstZero + (strength * kOctaveKinds + std::clamp(octave - 2, 0, 2)) * 4;
    bool any = false;
    for (int f = kOctaveStart[octave]; f < end; ++f) {
      const int level = kLevel[own[f - 1] + own[f - 2] + before[f] + beside[f]];
      bool nonzero = true;  // as the last of an octave must be if no other is
      if (any || f + 1 < end) nonzero = coder_.Bit(kind + level, values[f] != 0);
      if (!nonzero) continue;
      any = true;
      const int dc_before = f == 0 && block > 0 ? values[-kArchiveBlock] : 0;
      const int value = Nonzero(strength * kNeighbours + level, dc_before, values[f]);
      if constexpr (Coder::kReads) {
        values[f] = static_cast<int16_t>(value);
        own[f] = static_cast<uint8_t>(std::min(std::abs(value), 2));
      }
    }
  }

  // `value` is what an encoder codes; a decoder returns what it reads.
  int Nonzero(int strength, int dc_before, int value) {
    const int size = std::abs(value);
    const int first = kFirstMore + strength * kUnaryContexts;
    int magnitude = 1;
    while (magnitude < kUnary &&
           coder_.Bit(first + std::min(magnitude - 1, kUnaryContexts - 1), size > magnitude)) {
      ++magnitude;
    }
    if (magnitude == kUnary) magnitude += Rest(size - kUnary);
    bool negative = value < 0;
    if (dc_before != 0) {  // slow channels stay on their side
      negative = coder_.Bit(kFirstSign + (dc_before > 0 ? 0 : 1), negative);
    } else {
      negative = coder_.Raw(1, negative ? 1 : 0) != 0;
    }
    return negative ? -magnitude : magnitude;
  }

  // Exp-Golomb: the number of bits of rest + 1 in unary, then these bits but the first.
  int Rest(int rest) {
    const auto plus1 = static_cast<uint32_t>(rest + 1);
    const int bits = Coder::kReads ? kMaxPrefix : std::bit_width(plus1) - 1;
    int prefix = 0;
    while (prefix < kMaxPrefix - 1 && coder_.Bit(kFirstPrefix + prefix, prefix < bits)) ++prefix;
    uint32_t low = 0;
    if (prefix > 0) low = coder_.Raw(prefix, plus1 & ((1u << prefix) - 1));
    // Only damaged code is beyond what an encoder takes.
    return std::min(static_cast<int>((1u << prefix) + low) - 1, kArchiveLargest - kUnary);
  }

  static constexpr uint8_t kNothing[kArchiveBlock] = {};

  const ArchiveSymbolShape& shape_;
  Coder& coder_;
  Surroundings own_;       // the channel at work
  Surroundings previous_;  // the channel before it
  bool own_is_clear_ = true;
  bool previous_is_clear_ = true;
};

}  // namespace

const int kArchiveContexts = kContexts;

void EncodeArchiveSymbols(const ArchiveSymbolShape& shape, std::span<const uint16_t> probabilities,
                          std::span<const int16_t> values, std::vector<std::byte>* out) {
  Encoder encoder(probabilities, out);
  SymbolCoder<Encoder>(shape, &encoder).Run(values.data());
  encoder.Raw(kEndMarkBits, kEndMark);
  encoder.Finish();
}

absl::Status DecodeArchiveSymbols(const ArchiveSymbolShape& shape,
                                  std::span<const uint16_t> probabilities,
                                  std::span<const std::byte> code, std::span<int16_t> values) {
  Decoder decoder(probabilities, code);
  SymbolCoder<Decoder>(shape, &decoder).Run(values.data());
  if (decoder.Raw(kEndMarkBits, 0) != kEndMark || !decoder.AtEnd()) {
    return absl::DataLossError("archived payload is damaged: its code does not end as it must");
  }
  return absl::OkStatus();
}

void CountArchiveSymbols(const ArchiveSymbolShape& shape, std::span<const int16_t> values,
                         std::span<ArchiveBitCounts> counts) {
  Counter counter(counts);
  SymbolCoder<Counter>(shape, &counter).Run(values.data());
}

std::vector<uint16_t> ProbabilitiesFromCounts(std::span<const ArchiveBitCounts> counts) {
  constexpr double kPrior = 0.4;  // as if so much of a bit of each kind had been seen
  std::vector<uint16_t> probabilities;
  probabilities.reserve(counts.size());
  for (const ArchiveBitCounts& count : counts) {
    const double share =
        (count.ones + kPrior) / (static_cast<double>(count.ones) + count.zeros + 2 * kPrior);
    const double scaled = std::clamp<double>(share * (1 << AdaptiveBit::kBits), AdaptiveBit::kLow,
                                             AdaptiveBit::kHigh);
    probabilities.push_back(static_cast<uint16_t>(scaled));
  }
  return probabilities;
}

}  // namespace fourierkv
