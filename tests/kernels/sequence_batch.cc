#include "tests/kernels/sequence_batch.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numbers>
#include <numeric>

#include "compute/base/bfloat16.h"
#include "compute/codec/profile.h"

namespace fourierkv {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Normal numbers, quickly: a table in random order.
class Normals {
 public:
  explicit Normals(std::mt19937& random) : random_(random), table_(1 << 16) {
    std::normal_distribution<float> normal;
    for (float& x : table_) x = normal(random);
  }
  float operator()() { return table_[random_() & 0xffff]; }

 private:
  std::mt19937& random_;
  std::vector<float> table_;
};

template <typename T>
T Load(const std::vector<std::byte>& payload, int64_t offset) {
  T value;
  std::memcpy(&value, payload.data() + offset, sizeof value);
  return value;
}
template <typename T>
void Store(std::vector<std::byte>& payload, int64_t offset, T value) {
  std::memcpy(payload.data() + offset, &value, sizeof value);
}

std::vector<SequencePart::HeadOffsets> PlaceHeads(const SequencePart& part, int64_t tokens) {
  std::vector<SequencePart::HeadOffsets> places;
  const int64_t middle = part.scope.MiddleTokens(tokens);
  int64_t start = part.HeadsOffset(tokens);
  for (int h = 0; middle > 0 && h < part.geometry.kv_heads; ++h) {
    places.push_back(part.Place(h, start, middle));
    start = places.back().end;
  }
  return places;
}

std::vector<std::byte> RandomPayload(const SequencePart& part, int64_t tokens, int64_t capacity,
                                     KvDtype dtype, Normals& normal) {
  const SequenceScope& scope = part.scope;
  const int64_t middle = scope.MiddleTokens(tokens);
  std::vector<std::byte> payload(part.PayloadBytes(tokens));
  Store(payload, 0, static_cast<uint32_t>(tokens));
  Store(payload, 4, static_cast<uint32_t>(capacity));
  Store(payload, 8, static_cast<uint32_t>(middle));
  const int64_t exact = (tokens - middle) * part.geometry.kv_heads * part.geometry.head_dim;
  for (int64_t i = 0; i < exact; ++i) {
    Store(payload, kSequencePrefixBytes + 2 * i, FloatToKv(normal(), dtype));
  }
  const auto places = PlaceHeads(part, tokens);
  for (size_t h = 0; h < places.size(); ++h) {
    const SequenceHead& head = part.heads[h];
    const auto f = static_cast<int64_t>(head.spectral.size());
    for (int64_t j = 0; scope.peak_rescale && j < f; ++j) {
      Store(payload, places[h].gain + 4 * j, 0.5f + std::fabs(normal()));
      Store(payload, places[h].gain + 4 * (f + j), 0.3f * normal());
    }
    const double unit = std::sqrt(static_cast<double>(scope.Period(capacity)) / scope.frequencies);
    for (int64_t i = 0; i < f * scope.states(); ++i) {
      const auto s = static_cast<int>(i % scope.states());
      const int k = s % scope.frequencies;
      const double size = unit * (0.3 + std::sqrt(scope.frequencies) * 0.7 / (1 + k));
      const float c = s == scope.frequencies ? 0 : static_cast<float>(size * normal());
      if (head.coefficient_bits == 16) {
        Store(payload, places[h].coefficients + 2 * i, FloatToBf16(c));
      } else {
        Store(payload, places[h].coefficients + 4 * i, c);
      }
    }
    for (size_t i = 0; i < head.resident.size() * middle; ++i) {
      Store(payload, places[h].residents + 2 * static_cast<int64_t>(i), FloatToBf16(normal()));
    }
  }
  return payload;
}

// Host memory that becomes one buffer of the device.
class Staging {
 public:
  int64_t Take(int64_t size) {
    const auto offset = static_cast<int64_t>(bytes_.size());
    bytes_.resize(offset + (size + 255) / 256 * 256, std::byte{0xff});  // NaN in every format
    return offset;
  }
  int64_t Copy(const void* from, int64_t size) {
    const int64_t offset = Take(size);
    if (size > 0) std::memcpy(bytes_.data() + offset, from, size);
    return offset;
  }
  std::byte* at(int64_t offset) { return bytes_.data() + offset; }
  absl::StatusOr<DeviceBuffer> Finish() const {
    return DeviceBuffer::CopyOf(bytes_.data(), bytes_.size());
  }

 private:
  std::vector<std::byte> bytes_;
};

struct Channels {
  std::vector<int32_t> spectral;
  std::vector<uint16_t> ids;

  explicit Channels(const SequencePart& part) {
    for (const SequenceHead& head : part.heads) {
      spectral.push_back(static_cast<int32_t>(head.spectral.size()));
      ids.insert(ids.end(), head.spectral.begin(), head.spectral.end());
      ids.insert(ids.end(), head.resident.begin(), head.resident.end());
    }
  }
};

int CoefficientBits(const SequencePart& k, const SequencePart& v) {
  for (const SequencePart* part : {&k, &v}) {
    for (const SequenceHead& head : part->heads) {
      if (!head.spectral.empty()) return head.coefficient_bits;
    }
  }
  return 16;
}

// Offsets of a sequence's sections in its buffer.
struct Placed {
  kernels::SequenceRef ref = {};
  int64_t exact[2] = {};
  struct Side {
    int64_t coefficients = 0, gain = -1, residents = 0;
  };
  std::vector<std::array<Side, 2>> heads;
};

Placed Place(const SequencePart& k, const SequencePart& v, const SequencePayloads& sequence,
             int row_unit, Staging& staging, int64_t* bytes) {
  Placed placed;
  const int64_t tokens = sequence.tokens, middle = k.scope.MiddleTokens(tokens);
  placed.ref.middle_tokens = static_cast<int32_t>(middle);
  placed.ref.exact_tokens = static_cast<int32_t>(tokens - middle);
  placed.ref.exact_head_stride = (tokens - middle) * k.geometry.head_dim;
  placed.ref.resident_stride = (middle + row_unit - 1) / row_unit * row_unit + row_unit;
  placed.heads.resize(k.geometry.kv_heads);
  for (int i = 0; i < 2; ++i) {
    const SequencePart& part = i == 0 ? k : v;
    const std::byte* payload = (i == 0 ? sequence.k : sequence.v).data();
    const int64_t exact_bytes = k.geometry.PartBytes(tokens - middle);
    placed.exact[i] = staging.Copy(payload + kSequencePrefixBytes, exact_bytes);
    *bytes += exact_bytes;
    const auto places = PlaceHeads(part, tokens);
    for (size_t h = 0; h < places.size(); ++h) {
      const auto f = static_cast<int64_t>(part.heads[h].spectral.size());
      const auto r = static_cast<int64_t>(part.heads[h].resident.size());
      const int64_t coefficient_bytes = f * k.scope.states() * part.heads[h].coefficient_bits / 8;
      Placed::Side& side = placed.heads[h][i];
      side.coefficients = staging.Copy(payload + places[h].coefficients, coefficient_bytes);
      if (k.scope.peak_rescale) side.gain = staging.Copy(payload + places[h].gain, 8 * f);
      side.residents = staging.Take(2 * r * placed.ref.resident_stride);
      for (int64_t j = 0; j < r; ++j) {
        std::memcpy(staging.at(side.residents + 2 * j * placed.ref.resident_stride),
                    payload + places[h].residents + 2 * j * middle, 2 * middle);
      }
      *bytes += coefficient_bytes + 2 * r * middle;
    }
  }
  return placed;
}

// K or V of one head, as numbers.
struct Head {
  Head(const SequencePart& part, const std::vector<std::byte>& payload, int64_t tokens,
       KvDtype dtype, int h) {
    const int dim = part.geometry.head_dim;
    const int64_t middle = part.scope.MiddleTokens(tokens), exact_tokens = tokens - middle;
    for (int64_t i = 0; i < exact_tokens * dim; ++i) {
      const int64_t at = kSequencePrefixBytes + 2 * (h * exact_tokens * dim + i);
      exact.push_back(KvToFloat(Load<uint16_t>(payload, at), dtype));
    }
    if (middle == 0) return;
    const SequencePart::HeadOffsets at = PlaceHeads(part, tokens)[h];
    const SequenceHead& head = part.heads[h];
    spectral = head.spectral;
    resident = head.resident;
    const auto f = static_cast<int64_t>(spectral.size());
    for (int64_t i = 0; i < f * part.scope.states(); ++i) {
      coefficients.push_back(head.coefficient_bits == 16
                                 ? Bf16ToFloat(Load<uint16_t>(payload, at.coefficients + 2 * i))
                                 : Load<float>(payload, at.coefficients + 4 * i));
    }
    for (size_t i = 0; i < resident.size() * middle; ++i) {
      residents.push_back(
          Bf16ToFloat(Load<uint16_t>(payload, at.residents + 2 * static_cast<int64_t>(i))));
    }
    for (int64_t j = 0; j < f; ++j) {
      gain.push_back(part.scope.peak_rescale ? Load<float>(payload, at.gain + 4 * j) : 1);
      shift.push_back(part.scope.peak_rescale ? Load<float>(payload, at.gain + 4 * (f + j)) : 0);
    }
  }

  std::vector<uint16_t> spectral, resident;
  std::vector<double> exact;         // [tokens][dim]
  std::vector<double> coefficients;  // [f][states]
  std::vector<float> residents;      // [r][middle]
  std::vector<double> gain, shift;
};

// Rows of the basis, from tables.
class BasisRows {
 public:
  BasisRows(const SequenceScope& scope, int64_t period)
      : frequencies_(scope.frequencies), period_(period) {
    const double weight = std::sqrt(2.0 / static_cast<double>(period));
    for (int64_t i = 0; i < period; ++i) {
      const double angle =
          2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(period);
      cosines_.push_back(weight * std::cos(angle));
      sines_.push_back(weight * std::sin(angle));
    }
  }
  // Requires t < period.
  void Row(int64_t t, std::vector<double>& row) const {
    row.resize(2 * frequencies_);
    int64_t angle = 0;
    for (int k = 0; k < frequencies_; ++k) {
      row[k] = cosines_[angle];
      row[frequencies_ + k] = sines_[angle];
      angle += t;
      if (angle >= period_) angle -= period_;
    }
    row[0] /= std::numbers::sqrt2;
  }

 private:
  int frequencies_;
  int64_t period_;
  std::vector<double> cosines_, sines_;  // times the factor of all frequencies but 0
};

}  // namespace

SequencePayloads RandomSequence(const SequencePart& k, const SequencePart& v, int64_t tokens,
                                int64_t capacity, KvDtype dtype, std::mt19937& random) {
  Normals normal(random);
  return {tokens, capacity, RandomPayload(k, tokens, capacity, dtype, normal),
          RandomPayload(v, tokens, capacity, dtype, normal)};
}

CodecProfile SequenceProfile(int head_dim, const SequenceScope& scope, int coefficient_bits,
                             const std::vector<int>& k_spectral, const std::vector<int>& v_spectral,
                             std::mt19937& random) {
  CodecProfile profile;
  profile.name = "test";
  profile.geometry = {1, static_cast<int>(k_spectral.size()), head_dim};
  profile.basis = BasisKind::kDft;
  profile.segment_tokens = 0;
  profile.sequence = scope;
  for (size_t h = 0; h < k_spectral.size(); ++h) {
    for (const int f : {k_spectral[h], v_spectral[h]}) {
      std::vector<uint16_t> order(head_dim);
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), random);
      std::sort(order.begin(), order.begin() + f);
      std::sort(order.begin() + f, order.end());
      HeadProfile head;
      if (f > 0) {
        head.bands.push_back(
            {scope.states(), coefficient_bits, {order.begin(), order.begin() + f}});
      }
      if (f < head_dim) head.bands.push_back({0, 16, {order.begin() + f, order.end()}});
      profile.heads.push_back(head);
    }
  }
  return profile;
}

absl::StatusOr<SequenceBatch> SequenceBatch::Create(
    const SequencePart& k, const SequencePart& v,
    std::span<const SequencePayloads* const> sequences, int row_unit) {
  SequenceBatch batch;
  kernels::SequenceAttentionParams& p = batch.params_;
  const auto keep = [&](absl::StatusOr<DeviceBuffer> buffer) -> absl::StatusOr<std::byte*> {
    if (!buffer.ok()) return buffer.status();
    batch.buffers_.push_back(*std::move(buffer));
    return batch.buffers_.back().data();
  };
  p.batch = static_cast<int32_t>(sequences.size());
  p.kv_heads = k.geometry.kv_heads;
  p.head_dim = k.geometry.head_dim;
  p.frequencies = k.scope.frequencies;
  p.coefficient_bits = CoefficientBits(k, v);
  for (int i = 0; i < 2; ++i) {
    const Channels channels(i == 0 ? k : v);
    Staging staging;
    const int64_t spectral =
        staging.Copy(channels.spectral.data(), static_cast<int64_t>(channels.spectral.size()) * 4);
    const int64_t ids =
        staging.Copy(channels.ids.data(), static_cast<int64_t>(channels.ids.size()) * 2);
    const absl::StatusOr<std::byte*> data = keep(staging.Finish());
    if (!data.ok()) return data.status();
    (i == 0 ? p.k : p.v) = {reinterpret_cast<const int32_t*>(*data + spectral),
                            reinterpret_cast<const uint16_t*>(*data + ids)};
  }
  std::vector<kernels::SequenceRef> refs;
  std::vector<kernels::SequenceSide> sides;
  std::map<int64_t, kernels::SequenceBasisView> bases;
  for (const SequencePayloads* sequence : sequences) {
    Staging staging;
    Placed placed = Place(k, v, *sequence, row_unit, staging, &batch.bytes_);
    const absl::StatusOr<std::byte*> data = keep(staging.Finish());
    if (!data.ok()) return data.status();
    kernels::SequenceRef& ref = placed.ref;
    ref.exact_k = reinterpret_cast<const uint16_t*>(*data + placed.exact[0]);
    ref.exact_v = reinterpret_cast<const uint16_t*>(*data + placed.exact[1]);
    for (const auto& head : placed.heads) {
      for (const Placed::Side& side : head) {
        const std::byte* gain = side.gain < 0 ? nullptr : *data + side.gain;
        sides.push_back({*data + side.coefficients, reinterpret_cast<const float*>(gain),
                         reinterpret_cast<const uint16_t*>(*data + side.residents)});
      }
    }
    if (ref.middle_tokens > 0) {
      kernels::SequenceBasisView& basis = bases[k.scope.Period(sequence->capacity)];
      if (basis.data == nullptr) {
        std::vector<uint8_t> tables;
        basis = kernels::BuildSequenceBasis(k.scope.Period(sequence->capacity), k.scope.frequencies,
                                            &tables);
        const absl::StatusOr<std::byte*> at =
            keep(DeviceBuffer::CopyOf(tables.data(), tables.size()));
        if (!at.ok()) return at.status();
        basis.data = reinterpret_cast<const uint8_t*>(*at);
      }
      ref.basis = basis;
      p.max_nodes = std::max(p.max_nodes, basis.NodesFor(ref.middle_tokens));
    }
    p.max_middle_tokens = std::max(p.max_middle_tokens, ref.middle_tokens);
    p.max_exact_tokens = std::max(p.max_exact_tokens, ref.exact_tokens);
    refs.push_back(ref);
  }
  const absl::StatusOr<std::byte*> device_refs =
      keep(DeviceBuffer::CopyOf(refs.data(), refs.size() * sizeof refs[0]));
  if (!device_refs.ok()) return device_refs.status();
  const absl::StatusOr<std::byte*> device_sides =
      keep(DeviceBuffer::CopyOf(sides.data(), sides.size() * sizeof sides[0]));
  if (!device_sides.ok()) return device_sides.status();
  p.sequences = reinterpret_cast<const kernels::SequenceRef*>(*device_refs);
  p.sides = reinterpret_cast<const kernels::SequenceSide*>(*device_sides);
  return batch;
}

void SequenceBatch::Describe(kernels::SequenceAttentionParams* params) const {
  kernels::SequenceAttentionParams described = params_;
  described.query_heads = params->query_heads;
  described.dtype = params->dtype;
  described.float_io = params->float_io;
  described.scale = params->scale;
  described.q = params->q;
  described.out = params->out;
  described.lse = params->lse;
  described.workspace = params->workspace;
  described.workspace_bytes = params->workspace_bytes;
  *params = described;
}

HeadAttention ReferenceAttention(const SequencePart& k, const SequencePart& v,
                                 const SequencePayloads& sequence, KvDtype dtype, int head,
                                 double scale, std::span<const float> q) {
  const int dim = k.geometry.head_dim, states = k.scope.states();
  const int64_t tokens = sequence.tokens, middle = k.scope.MiddleTokens(tokens);
  const int64_t sink = middle > 0 ? k.scope.sink_tokens : tokens;
  const auto group = static_cast<int>(q.size() / dim);
  const Head keys(k, sequence.k, tokens, dtype, head), values(v, sequence.v, tokens, dtype, head);
  const BasisRows basis(k.scope, middle > 0 ? k.scope.Period(sequence.capacity) : 1);
  const auto in_middle = [&](int64_t t) { return t >= sink && t < sink + middle; };
  const auto exact_row = [&](int64_t t) { return (t < sink ? t : t - middle) * dim; };

  // C q, and the constant that shifts add.
  std::vector<double> state_scores(group * states, 0.0), offset(group, 0.0), row;
  for (int g = 0; g < group; ++g) {
    for (size_t j = 0; j < keys.spectral.size(); ++j) {
      const double x = q[g * dim + keys.spectral[j]];
      offset[g] += x * keys.shift[j];
      for (int s = 0; s < states; ++s) {
        state_scores[g * states + s] += x * keys.gain[j] * keys.coefficients[j * states + s];
      }
    }
  }
  std::vector<std::vector<double>> scores(group, std::vector<double>(tokens, 0.0));
  for (int64_t t = 0; t < tokens; ++t) {
    if (in_middle(t)) basis.Row(t - sink, row);
    for (int g = 0; g < group; ++g) {
      const float* query = q.data() + g * dim;
      double score = 0;
      if (in_middle(t)) {
        score = std::inner_product(row.begin(), row.end(), state_scores.begin() + g * states,
                                   offset[g]);
        for (size_t j = 0; j < keys.resident.size(); ++j) {
          score +=
              query[keys.resident[j]] * static_cast<double>(keys.residents[j * middle + t - sink]);
        }
      } else {
        for (int d = 0; d < dim; ++d) score += query[d] * keys.exact[exact_row(t) + d];
      }
      scores[g][t] = scale * score;
    }
  }

  HeadAttention result;
  std::vector<double> largest(group, -kInfinity), sum(group, 0.0), middle_sum(group, 0.0);
  std::vector<double> brought(group * states, 0.0), out(group * dim, 0.0);
  for (int g = 0; g < group; ++g) {
    for (const double score : scores[g]) largest[g] = std::max(largest[g], score);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    if (in_middle(t)) basis.Row(t - sink, row);
    for (int g = 0; g < group; ++g) {
      const double weight = std::exp(scores[g][t] - largest[g]);
      sum[g] += weight;
      if (in_middle(t)) {
        middle_sum[g] += weight;
        for (int s = 0; s < states; ++s) brought[g * states + s] += weight * row[s];
        for (size_t j = 0; j < values.resident.size(); ++j) {
          out[g * dim + values.resident[j]] +=
              weight * static_cast<double>(values.residents[j * middle + t - sink]);
        }
      } else {
        for (int d = 0; d < dim; ++d) out[g * dim + d] += weight * values.exact[exact_row(t) + d];
      }
    }
  }
  for (int g = 0; g < group; ++g) {
    for (size_t j = 0; j < values.spectral.size(); ++j) {
      const double total =
          std::inner_product(brought.begin() + g * states, brought.begin() + (g + 1) * states,
                             values.coefficients.begin() + j * states, 0.0);
      out[g * dim + values.spectral[j]] += values.gain[j] * total + values.shift[j] * middle_sum[g];
    }
    for (int d = 0; d < dim; ++d) result.out.push_back(out[g * dim + d] / sum[g]);
    result.lse.push_back(largest[g] + std::log(sum[g]));
  }
  return result;
}

}  // namespace fourierkv
