#include "compute/sequence/sequence_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/backend/cpu/kernels.h"
#include "compute/base/bfloat16.h"
#include "compute/codec/sequence_payload_check.h"

namespace fourierkv {
namespace {

// Calls use(first, count, rows) for each tile of the decoded middle: rows [channel][tile_tokens].
template <typename Use>
void ForTiles(const SequenceMiddle& middle, int h, Use use) {
  const int64_t tile_tokens = middle.basis().tile_tokens();
  SequenceBasis::Scratch scratch;
  std::vector<float> rows(middle.part().geometry.head_dim * tile_tokens);
  for (int64_t first = 0; first < middle.tokens(); first += tile_tokens) {
    middle.DecodeTile(h, first / tile_tokens, rows.data(), scratch);
    use(first, std::min(tile_tokens, middle.tokens() - first), rows.data());
  }
}

std::vector<uint16_t> ChannelOrder(const SequenceHead& head) {
  std::vector<uint16_t> order = head.spectral;
  order.insert(order.end(), head.resident.begin(), head.resident.end());
  return order;
}

// Sum of (x - x^)^2 over the middle; dense: its tokens.
double SquaredError(const SequenceMiddle& middle, int h, KvDtype dtype, const uint16_t* dense) {
  const std::vector<uint16_t> order = ChannelOrder(middle.channels(h));
  const int dim = middle.part().geometry.head_dim, tile_tokens = middle.basis().tile_tokens();
  double error = 0;
  ForTiles(middle, h, [&](int64_t first, int64_t count, const float* rows) {
    for (int64_t t = 0; t < count; ++t) {
      for (int j = 0; j < dim; ++j) {
        const float x = KvToFloat(dense[(first + t) * dim + order[j]], dtype);
        const double difference = x - rows[j * tile_tokens + t];
        error += difference * difference;
      }
    }
  });
  return error;
}

double Energy(KvDtype dtype, const uint16_t* dense, int64_t n) {
  double energy = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double x = KvToFloat(dense[i], dtype);
    energy += x * x;
  }
  return energy;
}

std::vector<SequencePart::HeadOffsets> PlaceHeads(const SequencePart& part, int64_t tokens) {
  std::vector<SequencePart::HeadOffsets> places;
  int64_t start = part.HeadsOffset(tokens);
  for (int h = 0; h < part.geometry.kv_heads; ++h) {
    places.push_back(part.Place(h, start, part.scope.MiddleTokens(tokens)));
    start = places.back().end;
  }
  return places;
}

// Where the exact tokens of a head stand, in its tokens and in the exact section of a payload.
struct ExactRange {
  int64_t token, row, count;
};
std::vector<ExactRange> ExactRanges(const SequenceScope& scope, int64_t tokens) {
  const int64_t middle = scope.MiddleTokens(tokens);
  if (middle == 0) return {{0, 0, tokens}};
  const int64_t sink = scope.sink_tokens;
  return {{0, 0, sink}, {sink + middle, sink, tokens - sink - middle}};
}

}  // namespace

std::shared_ptr<const SequenceBasis> MakeSequenceBasis(const SequenceScope& scope, int64_t tokens,
                                                       int64_t capacity) {
  if (scope.MiddleTokens(tokens) == 0) return nullptr;
  return std::make_shared<const SequenceBasis>(scope.Period(capacity), scope.frequencies);
}

absl::StatusOr<float> EncodeSequence(const SequencePart& part, int64_t tokens, int64_t capacity,
                                     std::shared_ptr<const SequenceBasis> basis, KvDtype dtype,
                                     const uint16_t* dense, std::span<std::byte> payload,
                                     ThreadPool& pool) {
  if (absl::Status s = CheckSequenceShape(tokens, capacity); !s.ok()) return s;
  const int dim = part.geometry.head_dim, heads = part.geometry.kv_heads;
  const int64_t middle = part.scope.MiddleTokens(tokens), exact = tokens - middle;
  for (int64_t row = 0; row < heads * tokens; ++row) {
    if (AllEncodable(dtype, dense + row * dim, dim)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("head ", row / tokens, ", token ", row % tokens,
                     " holds a value that is not finite or beyond 1e30"));
  }
  const uint32_t prefix[] = {static_cast<uint32_t>(tokens), static_cast<uint32_t>(capacity),
                             static_cast<uint32_t>(middle), 0};
  std::memcpy(payload.data(), prefix, sizeof prefix);
  for (int h = 0; h < heads; ++h) {
    for (const ExactRange& range : ExactRanges(part.scope, tokens)) {
      std::memcpy(payload.data() + kSequencePrefixBytes + (h * exact + range.row) * dim * 2,
                  dense + (h * tokens + range.token) * dim, range.count * dim * 2);
    }
  }
  const int64_t exact_end = kSequencePrefixBytes + part.geometry.PartBytes(exact);
  std::memset(payload.data() + exact_end, 0, part.HeadsOffset(tokens) - exact_end);
  if (middle == 0) return 0.0f;

  SequenceMiddle encoded(&part, std::move(basis));
  const std::vector<SequencePart::HeadOffsets> places = PlaceHeads(part, tokens);
  std::vector<double> error(heads), energy(heads);
  pool.ParallelFor(heads, [&](int64_t i, int) {
    const int h = static_cast<int>(i);
    const uint16_t* of_head = dense + i * tokens * dim;
    const uint16_t* of_middle = of_head + int64_t{part.scope.sink_tokens} * dim;
    encoded.AppendHead(h, dtype, of_middle, middle);
    encoded.SettleHead(h, dtype, of_middle);
    encoded.WriteHead(h, places[h], payload.data());
    energy[i] = Energy(dtype, of_head, tokens * dim);
    error[i] = SquaredError(encoded, h, dtype, of_middle);
  });
  if (absl::Status s = CheckSequencePayload(part, tokens, capacity, dtype, payload); !s.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("values are too large to encode: ", s.message()));
  }
  double lost = 0, total = 0;
  for (int h = 0; h < heads; ++h) {
    lost += error[h];
    total += energy[h];
  }
  return total > 0 ? static_cast<float>(std::sqrt(lost / total)) : 0.0f;
}

std::unique_ptr<SequenceMiddle> ReadSequenceMiddle(const SequencePart& part, int64_t tokens,
                                                   std::shared_ptr<const SequenceBasis> basis,
                                                   std::span<const std::byte> payload) {
  auto middle = std::make_unique<SequenceMiddle>(&part, std::move(basis));
  const std::vector<SequencePart::HeadOffsets> places = PlaceHeads(part, tokens);
  for (int h = 0; h < part.geometry.kv_heads; ++h) {
    middle->ReadHead(h, places[h], part.scope.MiddleTokens(tokens), payload.data());
  }
  return middle;
}

void DecodeSequence(const SequencePart& part, int64_t tokens,
                    std::shared_ptr<const SequenceBasis> basis, KvDtype dtype,
                    std::span<const std::byte> payload, uint16_t* dense, ThreadPool& pool) {
  const int dim = part.geometry.head_dim;
  const int64_t middle = part.scope.MiddleTokens(tokens), exact = tokens - middle;
  for (int h = 0; h < part.geometry.kv_heads; ++h) {
    for (const ExactRange& range : ExactRanges(part.scope, tokens)) {
      std::memcpy(dense + (h * tokens + range.token) * dim,
                  payload.data() + kSequencePrefixBytes + (h * exact + range.row) * dim * 2,
                  range.count * dim * 2);
    }
  }
  if (middle == 0) return;
  const auto encoded = ReadSequenceMiddle(part, tokens, std::move(basis), payload);
  const int tile_tokens = encoded->basis().tile_tokens();
  pool.ParallelFor(part.geometry.kv_heads, [&](int64_t h, int) {
    const std::vector<uint16_t> order = ChannelOrder(part.heads[h]);
    uint16_t* out = dense + (h * tokens + part.scope.sink_tokens) * dim;
    std::vector<float> token(dim);
    ForTiles(*encoded, static_cast<int>(h), [&](int64_t first, int64_t count, const float* rows) {
      for (int64_t t = 0; t < count; ++t) {
        for (int j = 0; j < dim; ++j) token[order[j]] = rows[j * tile_tokens + t];
        cpu::FloatsToKv(token.data(), dim, dtype, out + (first + t) * dim);
      }
    });
  });
}

}  // namespace fourierkv
