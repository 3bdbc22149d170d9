#include "compute/sequence/sequence_middle.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "compute/base/bfloat16.h"

namespace fourierkv {
namespace {

// Fewer tokens are added one by one, without the fixed cost of a tile.
constexpr int64_t kTileWorthTokens = 16;

uint16_t ToBf16(uint16_t value, KvDtype dtype) {
  return dtype == KvDtype::kBf16 ? value : FloatToBf16(KvToFloat(value, dtype));
}

// rows [channels][stride] = the given channels of dense [n][dim] from column `first` on.
void Transpose(const std::vector<uint16_t>& channels, KvDtype dtype, const uint16_t* dense,
               int64_t n, int dim, float* rows, int64_t stride) {
  for (int64_t t = 0; t < n; ++t) {
    for (size_t j = 0; j < channels.size(); ++j) {
      rows[static_cast<int64_t>(j) * stride + t] = KvToFloat(dense[t * dim + channels[j]], dtype);
    }
  }
}

void WidenBf16(const uint16_t* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = Bf16ToFloat(from[i]);
}

// Copies to `offset` and clears up to `end`.
void Put(std::byte* payload, int64_t offset, int64_t end, const void* from, size_t size) {
  if (size > 0) std::memcpy(payload + offset, from, size);
  std::memset(payload + offset + size, 0, end - offset - size);
}

}  // namespace

SequenceMiddle::SequenceMiddle(const SequencePart* part, std::shared_ptr<const SequenceBasis> basis)
    : part_(part), basis_(std::move(basis)), heads_(part->heads.size()) {
  for (size_t h = 0; h < heads_.size(); ++h) {
    heads_[h].coefficients.assign(part->heads[h].spectral.size() * basis_->states(), 0.0f);
    heads_[h].residents = std::make_unique_for_overwrite<uint16_t[]>(
        part->heads[h].resident.size() * basis_->period());
  }
}

int64_t SequenceMiddle::BytesFor(const SequencePart& part, int64_t tokens) {
  int64_t bytes = 0;
  for (const SequenceHead& head : part.heads) {
    const int64_t floats = part.scope.states() + (part.scope.peak_rescale ? 2 : 0);
    bytes += static_cast<int64_t>(head.spectral.size() * sizeof(float)) * floats +
             static_cast<int64_t>(head.resident.size() * sizeof(uint16_t)) * tokens;
  }
  return bytes;
}

void SequenceMiddle::AppendHead(int h, KvDtype dtype, const uint16_t* dense, int64_t n) {
  Head& head = heads_[h];
  const SequenceHead& channels = part_->heads[h];
  const int dim = part_->geometry.head_dim;
  const int64_t first = head.tokens;
  head.tokens += n;
  for (size_t j = 0; j < channels.resident.size(); ++j) {
    uint16_t* to = head.residents.get() + static_cast<int64_t>(j) * basis_->period() + first;
    for (int64_t t = 0; t < n; ++t) to[t] = ToBf16(dense[t * dim + channels.resident[j]], dtype);
  }
  const int f = static_cast<int>(channels.spectral.size());
  if (f == 0) return;
  if (n < kTileWorthTokens) {
    std::vector<float> row(basis_->states());
    for (int64_t t = 0; t < n; ++t) {
      basis_->Row(first + t, row.data());
      for (int j = 0; j < f; ++j) {
        const float x = KvToFloat(dense[t * dim + channels.spectral[j]], dtype);
        float* c = head.coefficients.data() + int64_t{j} * basis_->states();
        for (int s = 0; s < basis_->states(); ++s) c[s] += x * row[s];
      }
    }
    return;
  }
  const int64_t tile_tokens = basis_->tile_tokens();
  SequenceBasis::Scratch scratch;
  std::vector<float> rows(f * tile_tokens);
  for (int64_t t = first; t < first + n;) {
    const int64_t tile = t / tile_tokens;
    const int64_t count = std::min((tile + 1) * tile_tokens, first + n) - t;
    std::fill(rows.begin(), rows.end(), 0.0f);
    Transpose(channels.spectral, dtype, dense + (t - first) * dim, count, dim,
              rows.data() + t % tile_tokens, tile_tokens);
    basis_->Project(rows.data(), f, tile, 1, head.coefficients.data(), scratch);
    t += count;
  }
}

template <typename FillTile>
SequenceMiddle::Peaks SequenceMiddle::FindPeaks(int h, FillTile fill) const {
  const int64_t tile_tokens = basis_->tile_tokens(), n = heads_[h].tokens;
  const size_t f = part_->heads[h].spectral.size();
  std::vector<double> sum(f, 0.0);
  std::vector<float> low(f, INFINITY), high(f, -INFINITY);
  std::vector<float> rows(f * tile_tokens);
  for (int64_t tile = 0; tile * tile_tokens < n; ++tile) {
    fill(tile, rows.data());
    const int64_t count = std::min(tile_tokens, n - tile * tile_tokens);
    for (size_t j = 0; j < f; ++j) {
      const float* row = rows.data() + static_cast<int64_t>(j) * tile_tokens;
      for (int64_t t = 0; t < count; ++t) {
        sum[j] += row[t];
        low[j] = std::min(low[j], row[t]);
        high[j] = std::max(high[j], row[t]);
      }
    }
  }
  Peaks peaks;
  for (size_t j = 0; j < f; ++j) {
    const double mean = sum[j] / static_cast<double>(n);
    peaks.mean.push_back(mean);
    peaks.deviation.push_back(std::max(high[j] - mean, mean - low[j]));
  }
  return peaks;
}

void SequenceMiddle::SettleHead(int h, KvDtype dtype, const uint16_t* dense) {
  Head& head = heads_[h];
  const SequenceHead& channels = part_->heads[h];
  if (channels.coefficient_bits == 16) {
    for (float& c : head.coefficients) c = Bf16ToFloat(FloatToBf16(c));
  }
  if (!part_->scope.peak_rescale) return;
  const int f = static_cast<int>(channels.spectral.size());
  const int64_t tile_tokens = basis_->tile_tokens();
  const int dim = part_->geometry.head_dim;
  SequenceBasis::Scratch scratch;
  const Peaks original = FindPeaks(h, [&](int64_t tile, float* rows) {
    const int64_t first = tile * tile_tokens;
    Transpose(channels.spectral, dtype, dense + first * dim,
              std::min(tile_tokens, head.tokens - first), dim, rows, tile_tokens);
  });
  const Peaks rebuilt = FindPeaks(h, [&](int64_t tile, float* rows) {
    if (f > 0) basis_->Evaluate(head.coefficients.data(), f, tile, 1, rows, scratch);
  });
  head.gain.resize(f);
  head.shift.resize(f);
  for (int j = 0; j < f; ++j) {
    const double deviation = rebuilt.deviation[j];
    head.gain[j] = deviation > 0 ? static_cast<float>(original.deviation[j] / deviation) : 1.0f;
    head.shift[j] = static_cast<float>(original.mean[j] - head.gain[j] * rebuilt.mean[j]);
  }
}

void SequenceMiddle::DecodeTile(int h, int64_t tile, float* rows,
                                SequenceBasis::Scratch& scratch) const {
  const Head& head = heads_[h];
  const int f = static_cast<int>(part_->heads[h].spectral.size());
  const int64_t tile_tokens = basis_->tile_tokens();
  if (f > 0) basis_->Evaluate(head.coefficients.data(), f, tile, 1, rows, scratch);
  if (!head.gain.empty()) {
    for (int j = 0; j < f; ++j) {
      float* row = rows + j * tile_tokens;
      for (int64_t t = 0; t < tile_tokens; ++t) row[t] = head.gain[j] * row[t] + head.shift[j];
    }
  }
  const int64_t count = std::min(tile_tokens, head.tokens - tile * tile_tokens);
  for (size_t j = 0; j < part_->heads[h].resident.size(); ++j) {
    WidenBf16(
        head.residents.get() + static_cast<int64_t>(j) * basis_->period() + tile * tile_tokens,
        count, rows + (f + static_cast<int64_t>(j)) * tile_tokens);
  }
}

void SequenceMiddle::WriteHead(int h, const SequencePart::HeadOffsets& at,
                               std::byte* payload) const {
  const Head& head = heads_[h];
  const SequenceHead& channels = part_->heads[h];
  if (part_->scope.peak_rescale) {
    std::vector<float> both = head.gain;
    both.insert(both.end(), head.shift.begin(), head.shift.end());
    Put(payload, at.gain, at.coefficients, both.data(), both.size() * sizeof(float));
  }
  if (channels.coefficient_bits == 16) {
    std::vector<uint16_t> narrow(head.coefficients.size());
    std::transform(head.coefficients.begin(), head.coefficients.end(), narrow.begin(), FloatToBf16);
    Put(payload, at.coefficients, at.residents, narrow.data(), narrow.size() * sizeof(uint16_t));
  } else {
    Put(payload, at.coefficients, at.residents, head.coefficients.data(),
        head.coefficients.size() * sizeof(float));
  }
  int64_t offset = at.residents;
  for (size_t j = 0; j < channels.resident.size(); ++j) {
    std::memcpy(payload + offset, head.residents.get() + static_cast<int64_t>(j) * basis_->period(),
                head.tokens * sizeof(uint16_t));
    offset += head.tokens * static_cast<int64_t>(sizeof(uint16_t));
  }
  std::memset(payload + offset, 0, at.end - offset);
}

void SequenceMiddle::ReadHead(int h, const SequencePart::HeadOffsets& at, int64_t tokens,
                              const std::byte* payload) {
  Head& head = heads_[h];
  const SequenceHead& channels = part_->heads[h];
  head.tokens = tokens;
  if (part_->scope.peak_rescale) {
    const size_t f = channels.spectral.size();
    head.gain.resize(f);
    head.shift.resize(f);
    if (f > 0) {
      std::memcpy(head.gain.data(), payload + at.gain, f * sizeof(float));
      std::memcpy(head.shift.data(), payload + at.gain + f * sizeof(float), f * sizeof(float));
    }
  }
  if (channels.coefficient_bits == 16) {
    for (size_t i = 0; i < head.coefficients.size(); ++i) {
      uint16_t bits;
      std::memcpy(&bits, payload + at.coefficients + i * sizeof bits, sizeof bits);
      head.coefficients[i] = Bf16ToFloat(bits);
    }
  } else if (!head.coefficients.empty()) {
    std::memcpy(head.coefficients.data(), payload + at.coefficients,
                head.coefficients.size() * sizeof(float));
  }
  for (size_t j = 0; j < channels.resident.size(); ++j) {
    std::memcpy(head.residents.get() + static_cast<int64_t>(j) * basis_->period(),
                payload + at.residents + static_cast<int64_t>(j) * tokens * 2,
                tokens * sizeof(uint16_t));
  }
}

}  // namespace fourierkv
