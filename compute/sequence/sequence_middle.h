// The middle of a sequence in the form that attention reads: K or V of one layer.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "compute/codec/sequence_layout.h"
#include "compute/sequence/sequence_basis.h"

namespace fourierkv {

// Coefficients in float, whatever their width in the payload, so that tokens can be added one by
// one; resident channels in bf16. Room for basis->period() tokens. Methods that name a head may run
// at once on different heads; otherwise not thread safe.
class SequenceMiddle {
 public:
  struct Head {
    std::vector<float> coefficients;  // [f][states]
    std::vector<float> gain, shift;   // [f]; empty unless the profile rescales and they are known
    std::unique_ptr<uint16_t[]> residents;  // [r][period]
    int64_t tokens = 0;
  };

  // `part` must outlive the object. basis->frequencies() is the part's scope's.
  SequenceMiddle(const SequencePart* part, std::shared_ptr<const SequenceBasis> basis);

  const SequencePart& part() const { return *part_; }
  const SequenceBasis& basis() const { return *basis_; }
  const Head& head(int h) const { return heads_[h]; }
  const SequenceHead& channels(int h) const { return part_->heads[h]; }
  // Of every head, once all were given the same.
  int64_t tokens() const { return heads_[0].tokens; }
  // What coefficients, gains and residents of K or V of a layer take in memory.
  static int64_t BytesFor(const SequencePart& part, int64_t tokens);

  // Adds `n` tokens behind those that the head holds. dense: [n][head_dim], finite. The caller sees
  // to it that they fit. Time is proportional to n, whatever is held already.
  void AppendHead(int h, KvDtype dtype, const uint16_t* dense, int64_t n);

  // Once, after the first AppendHead: rounds coefficients to their width in the payload and finds
  // gain and shift, where the profile rescales. dense: all tokens that the head holds.
  void SettleHead(int h, KvDtype dtype, const uint16_t* dense);

  // All channels of one tile, decoded: rows [spectral, then resident][tile_tokens]. Tokens beyond
  // head(h).tokens are undefined.
  void DecodeTile(int h, int64_t tile, float* rows, SequenceBasis::Scratch& scratch) const;

  // The head's sections of a payload of SequencePart::Place(h, .., tokens()), offsets included.
  // WriteHead writes every byte of them; ReadHead expects what CheckSequencePayload accepts.
  void WriteHead(int h, const SequencePart::HeadOffsets& at, std::byte* payload) const;
  void ReadHead(int h, const SequencePart::HeadOffsets& at, int64_t tokens,
                const std::byte* payload);

 private:
  // Mean and largest deviation from it of each spectral channel.
  struct Peaks {
    std::vector<double> mean, deviation;
  };
  template <typename FillTile>
  Peaks FindPeaks(int h, FillTile fill) const;

  const SequencePart* part_;
  const std::shared_ptr<const SequenceBasis> basis_;
  std::vector<Head> heads_;
};

}  // namespace fourierkv
