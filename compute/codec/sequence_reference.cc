#include "compute/codec/sequence_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "compute/base/bfloat16.h"

namespace fourierkv::reference {
namespace {

template <typename T>
void Store(std::span<std::byte> payload, int64_t offset, T value) {
  std::memcpy(payload.data() + offset, &value, sizeof value);
}

template <typename T>
T Load(std::span<const std::byte> payload, int64_t offset) {
  T value;
  std::memcpy(&value, payload.data() + offset, sizeof value);
  return value;
}

using Column = std::vector<double>;  // one channel over the middle

Column Reconstruct(const SequenceScope& scope, int64_t period, const Column& c, int64_t n) {
  Column x(n, 0.0);
  for (int64_t t = 0; t < n; ++t) {
    for (int s = 0; s < scope.states(); ++s) x[t] += c[s] * SequenceBasisValue(scope, period, s, t);
  }
  return x;
}

double Mean(const Column& x) {
  double sum = 0;
  for (double value : x) sum += value;
  return sum / static_cast<double>(x.size());
}

double PeakDeviation(const Column& x) {
  const double mean = Mean(x);
  double peak = 0;
  for (double value : x) peak = std::max(peak, std::abs(value - mean));
  return peak;
}

}  // namespace

double SequenceBasisValue(const SequenceScope& scope, int64_t period, int state, int64_t t) {
  const int k = state % scope.frequencies;
  const double weight = std::sqrt((k == 0 ? 1.0 : 2.0) / static_cast<double>(period));
  const double angle =
      2 * std::numbers::pi * static_cast<double>(k * t % period) / static_cast<double>(period);
  return weight * (state < scope.frequencies ? std::cos(angle) : std::sin(angle));
}

double EncodeSequence(const SequencePart& part, int64_t tokens, int64_t capacity, KvDtype dtype,
                      std::span<const uint16_t> dense, std::span<std::byte> payload) {
  const SequenceScope& scope = part.scope;
  const int64_t n = scope.MiddleTokens(tokens), period = scope.Period(capacity);
  const int64_t exact = tokens - n;
  const int dim = part.geometry.head_dim;
  std::fill(payload.begin(), payload.end(), std::byte{0});
  Store(payload, 0, static_cast<uint32_t>(tokens));
  Store(payload, 4, static_cast<uint32_t>(capacity));
  Store(payload, 8, static_cast<uint32_t>(n));
  const auto value = [&](int head, int64_t t, int d) {
    return dense[(head * tokens + t) * dim + d];
  };
  double total = 0, lost = 0;
  int64_t start = part.HeadsOffset(tokens);
  for (int h = 0; h < part.geometry.kv_heads; ++h) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int d = 0; d < dim; ++d) {
        total += std::pow(static_cast<double>(KvToFloat(value(h, t, d), dtype)), 2);
        const bool middle = n > 0 && t >= scope.sink_tokens && t < scope.sink_tokens + n;
        if (middle) continue;
        const int64_t row = t < scope.sink_tokens ? t : t - n;
        Store(payload, kSequencePrefixBytes + ((h * exact + row) * dim + d) * 2, value(h, t, d));
      }
    }
    if (n == 0) continue;
    const SequencePart::HeadOffsets at = part.Place(h, start, n);
    start = at.end;
    const SequenceHead& head = part.heads[h];
    const auto middle = [&](int d) {
      Column x(n);
      for (int64_t t = 0; t < n; ++t) x[t] = KvToFloat(value(h, scope.sink_tokens + t, d), dtype);
      return x;
    };
    const auto f = static_cast<int64_t>(head.spectral.size());
    for (int64_t j = 0; j < f; ++j) {
      const Column x = middle(head.spectral[j]);
      Column c(scope.states(), 0.0);
      for (int s = 0; s < scope.states(); ++s) {
        for (int64_t t = 0; t < n; ++t) c[s] += SequenceBasisValue(scope, period, s, t) * x[t];
        const int64_t index = j * scope.states() + s;
        if (head.coefficient_bits == 16) {
          const uint16_t bits = FloatToBf16(static_cast<float>(c[s]));
          Store(payload, at.coefficients + index * 2, bits);
          c[s] = Bf16ToFloat(bits);
        } else {
          Store(payload, at.coefficients + index * 4, static_cast<float>(c[s]));
          c[s] = static_cast<float>(c[s]);
        }
      }
      const Column rebuilt = Reconstruct(scope, period, c, n);
      float gain = 1, shift = 0;
      if (scope.peak_rescale) {
        const double peak = PeakDeviation(rebuilt);
        if (peak > 0) gain = static_cast<float>(PeakDeviation(x) / peak);
        shift = static_cast<float>(Mean(x) - gain * Mean(rebuilt));
        Store(payload, at.gain + j * 4, gain);
        Store(payload, at.gain + (f + j) * 4, shift);
      }
      for (int64_t t = 0; t < n; ++t) lost += std::pow(x[t] - (gain * rebuilt[t] + shift), 2);
    }
    for (size_t j = 0; j < head.resident.size(); ++j) {
      const Column x = middle(head.resident[j]);
      for (int64_t t = 0; t < n; ++t) {
        const uint16_t bits = FloatToBf16(static_cast<float>(x[t]));
        Store(payload, at.residents + (static_cast<int64_t>(j) * n + t) * 2, bits);
        lost += std::pow(x[t] - Bf16ToFloat(bits), 2);
      }
    }
  }
  return total == 0 ? 0 : std::sqrt(lost / total);
}

std::vector<double> DecodeSequence(const SequencePart& part, KvDtype dtype,
                                   std::span<const std::byte> payload) {
  const SequenceScope& scope = part.scope;
  const int64_t tokens = Load<uint32_t>(payload, 0);
  const int64_t n = scope.MiddleTokens(tokens);
  const int64_t period = scope.Period(Load<uint32_t>(payload, 4));
  const int64_t exact = tokens - n;
  const int dim = part.geometry.head_dim;
  std::vector<double> dense(static_cast<size_t>(part.geometry.kv_heads) * tokens * dim);
  const auto at_token = [&](int h, int64_t t, int d) -> double& {
    return dense[(h * tokens + t) * dim + d];
  };
  int64_t start = part.HeadsOffset(tokens);
  for (int h = 0; h < part.geometry.kv_heads; ++h) {
    for (int64_t row = 0; row < exact; ++row) {
      const int64_t t = n == 0 || row < scope.sink_tokens ? row : row + n;
      for (int d = 0; d < dim; ++d) {
        at_token(h, t, d) = KvToFloat(
            Load<uint16_t>(payload, kSequencePrefixBytes + ((h * exact + row) * dim + d) * 2),
            dtype);
      }
    }
    if (n == 0) continue;
    const SequencePart::HeadOffsets at = part.Place(h, start, n);
    start = at.end;
    const SequenceHead& head = part.heads[h];
    const auto f = static_cast<int64_t>(head.spectral.size());
    for (int64_t j = 0; j < f; ++j) {
      Column c(scope.states());
      for (int s = 0; s < scope.states(); ++s) {
        const int64_t index = j * scope.states() + s;
        c[s] = head.coefficient_bits == 16
                   ? Bf16ToFloat(Load<uint16_t>(payload, at.coefficients + index * 2))
                   : Load<float>(payload, at.coefficients + index * 4);
      }
      const double gain = scope.peak_rescale ? Load<float>(payload, at.gain + j * 4) : 1;
      const double shift = scope.peak_rescale ? Load<float>(payload, at.gain + (f + j) * 4) : 0;
      const Column x = Reconstruct(scope, period, c, n);
      for (int64_t t = 0; t < n; ++t) {
        at_token(h, scope.sink_tokens + t, head.spectral[j]) = gain * x[t] + shift;
      }
    }
    for (size_t j = 0; j < head.resident.size(); ++j) {
      for (int64_t t = 0; t < n; ++t) {
        at_token(h, scope.sink_tokens + t, head.resident[j]) = Bf16ToFloat(
            Load<uint16_t>(payload, at.residents + (static_cast<int64_t>(j) * n + t) * 2));
      }
    }
  }
  return dense;
}

}  // namespace fourierkv::reference
