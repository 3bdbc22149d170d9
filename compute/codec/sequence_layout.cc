#include "compute/codec/sequence_layout.h"

namespace fourierkv {
namespace {

constexpr int64_t kAlignment = 16;

int64_t AlignUp(int64_t offset) { return (offset + kAlignment - 1) / kAlignment * kAlignment; }

SequencePart LayOut(const CodecProfile& profile, int layer, Part part) {
  SequencePart out;
  out.geometry = profile.geometry;
  out.scope = *profile.sequence;
  for (int h = 0; h < profile.geometry.kv_heads; ++h) {
    SequenceHead& head = out.heads.emplace_back();
    for (const Band& band : profile.head(layer, h, part).bands) {
      (band.spectral() ? head.spectral : head.resident) = band.channels;
      if (band.spectral()) head.coefficient_bits = band.bits;
    }
  }
  return out;
}

}  // namespace

int64_t SequencePart::HeadsOffset(int64_t tokens) const {
  const int64_t exact = tokens - scope.MiddleTokens(tokens);
  return AlignUp(kSequencePrefixBytes + geometry.PartBytes(exact));
}

SequencePart::HeadOffsets SequencePart::Place(int head, int64_t start, int64_t middle) const {
  const SequenceHead& of = heads[head];
  const auto spectral = static_cast<int64_t>(of.spectral.size());
  HeadOffsets at;
  at.gain = start;
  at.coefficients = AlignUp(start + (scope.peak_rescale ? 2 * 4 * spectral : 0));
  at.residents = AlignUp(at.coefficients + spectral * scope.states() * of.coefficient_bits / 8);
  at.end = AlignUp(at.residents + 2 * static_cast<int64_t>(of.resident.size()) * middle);
  return at;
}

int64_t SequencePart::PayloadBytes(int64_t tokens) const {
  int64_t end = HeadsOffset(tokens);
  const int64_t middle = scope.MiddleTokens(tokens);
  if (middle == 0) return end;
  for (size_t h = 0; h < heads.size(); ++h) end = Place(static_cast<int>(h), end, middle).end;
  return end;
}

SequenceLayout::SequenceLayout(const CodecProfile& profile) : profile_(profile), id_(profile.Id()) {
  for (int layer = 0; layer < profile.geometry.layers; ++layer) {
    for (Part part : kParts) parts_.push_back(LayOut(profile_, layer, part));
  }
}

int64_t SequenceLayout::PayloadBytes(int64_t tokens) const {
  int64_t bytes = 0;
  for (const SequencePart& part : parts_) bytes += part.PayloadBytes(tokens);
  return bytes;
}

}  // namespace fourierkv
