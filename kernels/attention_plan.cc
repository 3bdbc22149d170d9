#include "kernels/attention_plan.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/attention_basis.h"
#include "kernels/attention_program.h"

namespace fourierkv::kernels {
namespace {

constexpr int kMaxBands = 16;
constexpr int kSmallSlack = 48;  // loads of words may reach behind the last byte

int64_t AlignUp(int64_t x) { return (x + 15) / 16 * 16; }

// Appends at a multiple of 16 bytes and returns where.
template <typename T>
uint32_t Append(std::vector<uint8_t>* buffer, const T* values, size_t count) {
  const size_t at = AlignUp(static_cast<int64_t>(buffer->size()));
  buffer->resize(at + count * sizeof(T));
  if (count > 0) std::memcpy(buffer->data() + at, values, count * sizeof(T));
  return static_cast<uint32_t>(at);
}

// K or V of one head.
struct PartProgram {
  std::vector<Step> steps;
  std::vector<SmallCopy> copies;
  std::vector<SmallBand> bands;
  std::vector<int16_t> channels;
  int small_bytes = 0;
  int chunks = 0;
  int residents = 0;  // the first chunk of residents
  int largest_m = 0;
  int64_t payload_bytes = 0;  // that a segment's copies read
};

std::string CheckBand(const PartView& part, const BandView& band) {
  if (band.size < 1 || band.size > part.head_dim) return "a band's size is out of bounds";
  for (int i = 0; i < band.size; ++i) {
    if (part.channels[band.channels + i] >= part.head_dim) return "a channel is beyond head_dim";
  }
  if (band.bits < 16 && band.scale_offset % 16 != 0) {
    return "bands must start at a multiple of 16 bytes";
  }
  if (band.bits == 3 && band.high_offset % 16 != 0) {
    return "planes must start at a multiple of 16 bytes";
  }
  if (band.coefficients > 0) {
    if (band.coefficients > 16 * kMaxBasisBlocks || band.coefficients > part.columns) {
      return "a band has more coefficients than the basis has columns, or more than 64";
    }
    if (band.bits == 16 && band.data_offset % 16 != 0) {
      return "bands must start at a multiple of 16 bytes";
    }
    return band.bits == 8 || band.bits == 16 ? "" : "spectral bands must have 8 or 16 bits";
  }
  switch (band.bits) {
    case 2:
    case 3:
    case 4:
    case 8:
    case 16:
      return band.data_offset % 16 == 0 ? "" : "residents must start at a multiple of 16 bytes";
    default:
      return "resident bands must have 2, 3, 4, 8 or 16 bits";
  }
}

// Small data of a band: copied from `start`, `bytes` long.
SmallBand AddSmall(const BandView& band, int64_t start, int64_t bytes, PartProgram* program) {
  SmallBand small = {};
  const int64_t target = program->small_bytes;
  if (!program->copies.empty() &&
      program->copies.back().source + program->copies.back().bytes == start) {
    program->copies.back().bytes += static_cast<uint16_t>(AlignUp(bytes));
  } else {
    program->copies.push_back({static_cast<uint32_t>(start), static_cast<uint16_t>(target),
                               static_cast<uint16_t>(AlignUp(bytes))});
  }
  program->small_bytes += static_cast<int>(AlignUp(bytes));
  small.channels = static_cast<uint16_t>(band.size);
  small.coefficients = static_cast<uint8_t>(band.coefficients);
  small.chunks = static_cast<uint8_t>((band.size + kChunk - 1) / kChunk);
  small.first_chunk = static_cast<uint8_t>(program->chunks);
  return small;
}

void AddSpectral(const BandView& band, PartProgram* program) {
  const bool scaled = band.bits == 8;
  const int64_t start = scaled ? band.scale_offset : band.data_offset;
  const int64_t values = static_cast<int64_t>(band.size) * band.coefficients;
  const int64_t bytes = band.data_offset + values * band.bits / 8 - start;
  const int target = program->small_bytes;
  SmallBand small = AddSmall(band, start, bytes, program);
  small.kind = scaled ? kSpectral8 : kSpectral16;
  small.scale = static_cast<uint16_t>(target);
  small.data = static_cast<uint16_t>(target + (band.data_offset - start));
  program->bands.push_back(small);
  program->payload_bytes += AlignUp(bytes);
  program->largest_m = std::max(program->largest_m, band.coefficients);
}

void AddResident(const PartView& part, const BandView& band, PartProgram* program) {
  SmallBand small = {};
  if (band.bits == 16) {
    small.kind = kPlain;
    small.channels = static_cast<uint16_t>(band.size);
    small.chunks = static_cast<uint8_t>((band.size + kChunk - 1) / kChunk);
    small.first_chunk = static_cast<uint8_t>(program->chunks);
  } else {
    const int target = program->small_bytes;
    small = AddSmall(band, band.scale_offset, 4 * static_cast<int64_t>(band.size), program);
    small.kind = kScaled;
    small.scale = static_cast<uint16_t>(target);
    small.data = static_cast<uint16_t>(target + (band.zero_offset - band.scale_offset));
    program->payload_bytes += AlignUp(4 * static_cast<int64_t>(band.size));
  }
  program->bands.push_back(small);
  const int64_t row = static_cast<int64_t>(part.segment_tokens);  // values of a channel
  for (int first = 0; first < band.size; first += kChunk) {
    Step step = {};
    step.kind = static_cast<uint8_t>(band.bits);
    step.valid = static_cast<uint8_t>(std::min(kChunk, band.size - first));
    step.chunk = static_cast<uint8_t>(program->chunks + first / kChunk);
    step.scale = static_cast<uint16_t>(small.scale + 2 * first);
    step.zero = static_cast<uint16_t>(small.data + 2 * first);
    const int plane = band.bits == 3 ? 2 : band.bits;
    step.source = static_cast<uint32_t>(band.data_offset + first * row * plane / 8);
    if (band.bits == 3) step.high = static_cast<uint32_t>(band.high_offset + first * row / 8);
    const int runs = band.bits == 16 ? 4 : band.bits == 8 ? 2 : 1;
    for (step.run = 0; step.run < runs; ++step.run) program->steps.push_back(step);
  }
  program->payload_bytes += row * band.size * band.bits / 8;
}

// Which slot of a chunk of keys is value i % 4 of lane column i / 4: lanes take adjacent channels
// of coefficients, and every fourth of residents.
int SlotOf(const BandView& band, int i) { return band.coefficients > 0 ? i : i / 4 + 4 * (i % 4); }

// `lane_order`: how chunks' channels are listed (attention_program.h).
std::string BuildPart(const PartView& part, int head, bool lane_order, PartProgram* program) {
  Step step = {};
  step.kind = kSmall;
  program->steps.push_back(step);
  const int begin = part.head_bands[head];
  const int end = part.head_bands[head + 1];
  if (begin < 0 || end <= begin || end - begin > kMaxBands) {
    return "a head must have 1 to 16 bands";
  }
  int channels = 0;
  for (int b = begin; b < end; ++b) {
    const BandView& band = part.bands[b];
    if (std::string fault = CheckBand(part, band); !fault.empty()) return fault;
    if (band.coefficients > 0 && program->residents != program->chunks) {
      return "spectral bands must come before resident ones";
    }
    channels += band.size;
    if (channels > part.head_dim) return "bands have more channels than the head";
    if (band.coefficients > 0) {
      AddSpectral(band, program);
    } else {
      AddResident(part, band, program);
    }
    for (int first = 0; first < band.size; first += kChunk) {
      for (int i = 0; i < kChunk; ++i) {
        const int slot = first + (lane_order ? SlotOf(band, i) : i);
        const int16_t none = -1;
        program->channels.push_back(
            slot < band.size ? static_cast<int16_t>(part.channels[band.channels + slot]) : none);
      }
      ++program->chunks;
    }
    if (band.coefficients > 0) program->residents = program->chunks;
  }
  // A part's small data must not be overwritten while its steps run: a copy starts three steps
  // ahead of its use.
  while (program->steps.size() < 3) program->steps.push_back(Step{});
  if (program->small_bytes > 32768) return "coefficients and scales of a head exceed 32 KiB";
  return "";
}

std::string CheckPart(const PartView& part) {
  if (part.kv_heads < 1 || part.kv_heads > 256) return "kv_heads must be from 1 to 256";
  if (part.head_dim < 8 || part.head_dim > kMaxHeadDim || part.head_dim % 8 != 0) {
    return "head_dim must be a multiple of 8 up to 256";
  }
  const int s = part.segment_tokens;
  if (s != 128 && s != 256 && s != 512 && s != 1024) {
    return "segments must have 128, 256, 512 or 1024 tokens";
  }
  if (part.basis == nullptr || part.bands == nullptr || part.head_bands == nullptr ||
      part.channels == nullptr || part.columns < 1) {
    return "a table is missing";
  }
  return "";
}

// Of `bits`: no residents so far, but int8 coefficients, which residents of 16 bits do not go with.
constexpr int kAnyScaled = 1;

// The head as a uniform part; `bits` is that of the residents of all heads so far, 0 for none yet.
// False if it is none.
bool MakeUniform(const PartView& part, int head, int* bits, UniformPart* uniform) {
  *uniform = {};
  if (part.segment_tokens != kUnitTokens) return false;
  const int begin = part.head_bands[head];
  const int end = part.head_bands[head + 1];
  if (end - begin > 2) return false;
  const auto same_bits = [&](int own) {
    if (*bits == 0 || (*bits == kAnyScaled && own < 16)) *bits = own;
    return *bits == own || (own == kAnyScaled && *bits < 16);
  };
  for (int b = begin; b < end; ++b) {
    const BandView& band = part.bands[b];
    const auto chunks = static_cast<uint16_t>((band.size + kChunk - 1) / kChunk);
    const bool scaled = band.bits != 16;
    const int64_t start = scaled ? band.scale_offset : band.data_offset;
    if (b == begin) uniform->source = static_cast<uint32_t>(start);
    if (band.coefficients > 0) {
      if (b > begin || band.coefficients > 8 || !same_bits(scaled ? kAnyScaled : 16)) return false;
      uniform->channels = static_cast<uint16_t>(band.size);
      uniform->coefficients = static_cast<uint16_t>(band.coefficients);
      uniform->data = static_cast<uint16_t>(band.data_offset - start);
      uniform->chunks = chunks;
      const int64_t values = static_cast<int64_t>(band.size) * band.coefficients;
      uniform->small_bytes = static_cast<uint16_t>(AlignUp(uniform->data + values * band.bits / 8));
    } else {
      if ((band.bits != 4 && band.bits != 8 && band.bits != 16) || uniform->residents > 0 ||
          band.size > 128 || (band.bits == 16 && band.size < 4) || !same_bits(band.bits)) {
        return false;
      }
      uniform->residents = static_cast<uint16_t>(band.size);
      uniform->resident_chunks = chunks;
      uniform->scale = uniform->small_bytes;
      if (start != static_cast<int64_t>(uniform->source) + uniform->small_bytes) return false;
      if (scaled && band.zero_offset != band.scale_offset + 2 * static_cast<int64_t>(band.size)) {
        return false;
      }
      uniform->small_bytes = static_cast<uint16_t>(band.data_offset - uniform->source);
    }
  }
  return true;
}

// The order of a uniform head's queries (attention_program.h), if residents have `bits`.
std::vector<int16_t> QueryOrder(const PartView& part, int head, const UniformPart& uniform,
                                int bits) {
  const uint16_t* const ids = part.channels + part.bands[part.head_bands[head]].channels;
  const uint16_t* const resident_ids =
      part.channels + part.bands[part.head_bands[head + 1] - 1].channels;
  std::vector<int16_t> order;
  const int groups = bits == 16 ? uniform.chunks : (uniform.chunks + 1) / 2;
  for (int g = 0; g < groups; ++g) {
    for (int i = 0; i < 32; ++i) {
      const int chunk = bits == 16 ? g : 2 * g + i / 16;
      const int channel = kChunk * chunk + i % 16;
      order.push_back(channel < uniform.channels ? static_cast<int16_t>(ids[channel])
                                                 : int16_t{-1});
    }
  }
  for (int n = 0; n < uniform.resident_chunks; ++n) {
    for (int i = 0; i < 32; ++i) {
      const int own = kChunk * n + 4 * (i / 4 % 4);
      // Lanes whose four channels would not all be there take the last four (FirstResident).
      const int channel = std::max(std::min(own, uniform.residents - 4), 0) + i % 4;
      order.push_back(channel >= own && channel < uniform.residents
                          ? static_cast<int16_t>(resident_ids[channel])
                          : int16_t{-1});
    }
  }
  return order;
}

uint32_t AppendRotation(const PartView& part, int head, bool transposed,
                        std::vector<uint8_t>* buffer) {
  if (part.rotations == nullptr || part.rotations[head] == nullptr) return 0;
  const int d = part.head_dim;
  std::vector<float> u(part.rotations[head], part.rotations[head] + static_cast<size_t>(d) * d);
  if (transposed) {
    for (int i = 0; i < d; ++i) {
      for (int j = 0; j < i; ++j) std::swap(u[i * d + j], u[j * d + i]);
    }
  }
  return Append(buffer, u.data(), u.size());
}

std::vector<uint8_t> Assemble(const PartProgram& k, const PartProgram& v, HeadProgram header) {
  std::vector<uint8_t> program;
  header.steps = static_cast<uint16_t>(k.steps.size() + v.steps.size());
  header.v_step = static_cast<uint16_t>(k.steps.size());
  header.k_copies = static_cast<uint16_t>(k.copies.size());
  header.v_copies = static_cast<uint16_t>(v.copies.size());
  header.k_bands = static_cast<uint16_t>(k.bands.size());
  header.v_bands = static_cast<uint16_t>(v.bands.size());
  header.k_chunks = static_cast<uint16_t>(k.chunks);
  header.v_chunks = static_cast<uint16_t>(v.chunks);
  header.k_blocks = static_cast<uint16_t>(k.largest_m > 1 ? (k.largest_m + 15) / 16 : 0);
  header.v_blocks = static_cast<uint16_t>(std::max(1, (v.largest_m + 15) / 16));
  header.k_residents = static_cast<uint16_t>(k.residents);
  Append(&program, &header, 1);
  std::vector<Step> steps = k.steps;
  steps.insert(steps.end(), v.steps.begin(), v.steps.end());
  Append(&program, steps.data(), steps.size());
  std::vector<SmallCopy> copies = k.copies;
  copies.insert(copies.end(), v.copies.begin(), v.copies.end());
  header.copies = Append(&program, copies.data(), copies.size());
  std::vector<SmallBand> bands = k.bands;
  bands.insert(bands.end(), v.bands.begin(), v.bands.end());
  header.bands = Append(&program, bands.data(), bands.size());
  header.k_channels = Append(&program, k.channels.data(), k.channels.size());
  program.resize(AlignUp(static_cast<int64_t>(program.size())));
  header.bytes = static_cast<uint32_t>(program.size());
  std::memcpy(program.data(), &header, sizeof(header));
  return program;
}

// All heads are uniform parts with so many rows of residents, of K and of V: where they stand. What
// would leave too few warps on a multiprocessor goes step by step.
void SetUniform(int bits, const int (&residents)[2], AttentionPlanView* view) {
  if (bits <= kAnyScaled) bits = 4;  // no head has any
  const int row_bytes = kUnitTokens * bits / 8;
  view->k_uniform_bytes =
      static_cast<int32_t>(AlignUp(view->k_small_bytes)) + residents[0] * row_bytes;
  view->v_uniform_bytes =
      static_cast<int32_t>(AlignUp(view->v_small_bytes)) + residents[1] * row_bytes;
  // bf16 has K and V in one place, in turn.
  const int bytes = bits == 16 ? std::max(view->k_uniform_bytes, view->v_uniform_bytes)
                               : view->k_uniform_bytes + view->v_uniform_bytes;
  if (bytes <= 24 * 1024) view->uniform_bits = bits;
}

// Orders of all uniform heads' queries, and what these and outputs need.
void AppendOrders(const PartView& k, const std::vector<HeadProgram>& headers,
                  std::vector<uint8_t>* buffer, AttentionPlanView* view) {
  const int bits = view->uniform_bits;
  std::vector<std::vector<int16_t>> orders;
  size_t longest = 0;
  for (size_t head = 0; head < headers.size(); ++head) {
    const UniformPart& v = headers[head].uniform_v;
    orders.push_back(QueryOrder(k, static_cast<int>(head), headers[head].uniform_k, bits));
    longest = std::max(longest, orders.back().size());
    view->v_output_bytes = std::max<int32_t>(view->v_output_bytes,
                                             512 * ((v.chunks + 1) / 2) + 256 * v.resident_chunks);
  }
  std::vector<int16_t> all;
  for (std::vector<int16_t>& order : orders) {
    order.resize(longest, -1);
    all.insert(all.end(), order.begin(), order.end());
  }
  view->k_order = static_cast<int32_t>(Append(buffer, all.data(), all.size()));
  view->k_order_bytes = static_cast<int32_t>(2 * longest);
  view->k_query_bytes = static_cast<int32_t>(longest / 32) * (bits == 16 ? 256 : 512);
}

}  // namespace

std::string BuildAttentionPlan(const PartView& k, const PartView& v, std::vector<uint8_t>* buffer,
                               AttentionPlanView* view) {
  for (const PartView* part : {&k, &v}) {
    if (std::string fault = CheckPart(*part); !fault.empty()) return fault;
  }
  if (k.kv_heads != v.kv_heads || k.head_dim != v.head_dim ||
      k.segment_tokens != v.segment_tokens) {
    return "K and V differ in heads, dimension or segment length";
  }
  *view = {};
  buffer->clear();
  view->kv_heads = k.kv_heads;
  view->head_dim = k.head_dim;
  view->segment_tokens = k.segment_tokens;
  view->slot_bytes = 2048;

  buffer->resize(16);  // offset 0 stands for nothing
  std::vector<std::vector<uint8_t>> programs;
  std::vector<HeadProgram> headers;
  int largest_m = 1;
  int64_t bytes = 0;
  bool uniform = true;
  int uniform_bits = 0;
  int residents[2] = {0, 0};
  for (int head = 0; head < k.kv_heads; ++head) {
    PartProgram parts[2];
    HeadProgram header = {};
    const PartView* const views[2] = {&k, &v};
    for (int p = 0; p < 2; ++p) {
      if (std::string fault = BuildPart(*views[p], head, p == 0, &parts[p]); !fault.empty()) {
        return fault;
      }
      largest_m = std::max(largest_m, parts[p].largest_m);
      UniformPart* const own = p == 0 ? &header.uniform_k : &header.uniform_v;
      uniform = uniform && MakeUniform(*views[p], head, &uniform_bits, own);
      residents[p] = std::max<int>(residents[p], own->residents);
      for (const Step& step : parts[p].steps) {
        if (step.kind == 3 && k.segment_tokens >= 512) view->slot_bytes = 4096;
      }
      bytes += parts[p].payload_bytes;
    }
    header.v_channels = Append(buffer, parts[1].channels.data(), parts[1].channels.size());
    header.k_rotation = AppendRotation(k, head, /*transposed=*/false, buffer);
    header.v_rotation = AppendRotation(v, head, /*transposed=*/true, buffer);
    view->k_rotated |= header.k_rotation != 0;
    view->v_rotated |= header.v_rotation != 0;
    programs.push_back(Assemble(parts[0], parts[1], header));
    headers.push_back(header);
    view->program_bytes =
        std::max(view->program_bytes, static_cast<int32_t>(programs.back().size()));
    view->k_small_bytes = std::max(view->k_small_bytes, parts[0].small_bytes + kSmallSlack);
    view->v_small_bytes = std::max(view->v_small_bytes, parts[1].small_bytes + kSmallSlack);
    view->k_chunks = std::max(view->k_chunks, parts[0].chunks);
    view->v_chunks = std::max(view->v_chunks, parts[1].chunks);
  }
  for (size_t head = 0; head < programs.size(); ++head) {
    programs[head].resize(view->program_bytes);
    const uint32_t at = Append(buffer, programs[head].data(), programs[head].size());
    if (head == 0) view->programs = static_cast<int32_t>(at);
  }

  view->basis_blocks = largest_m <= 8 && k.segment_tokens == kUnitTokens ? 0
                       : largest_m <= 16                                 ? 1
                       : largest_m <= 32                                 ? 2
                                                                         : 4;
  // Both parts of a layer have one basis; the one with more columns speaks for both.
  const PartView& basis = k.columns >= v.columns ? k : v;
  if (uniform && view->basis_blocks == 0) SetUniform(uniform_bits, residents, view);
  const int bits = view->uniform_bits;
  const std::vector<uint32_t> scores =
      bits != 0 ? UniformScoreBasis(basis, bits) : ScoreBasis(basis, view->basis_blocks);
  view->k_basis = static_cast<int32_t>(Append(buffer, scores.data(), scores.size()));
  const std::vector<uint32_t> weights =
      bits != 0 ? UniformWeightBasis(basis, bits) : WeightBasis(basis, view->basis_blocks);
  view->v_basis = static_cast<int32_t>(Append(buffer, weights.data(), weights.size()));
  if (bits != 0) {
    const std::vector<float> factors = UniformWeightFactors(basis, bits);
    view->v_factors = static_cast<int32_t>(Append(buffer, factors.data(), factors.size()));
    AppendOrders(k, headers, buffer, view);
  }

  // Bytes decide what a unit costs, but it has a floor: 1,400 instructions.
  const int64_t unit = bytes / k.kv_heads / std::max(1, k.segment_tokens / kUnitTokens);
  view->segment_cost = static_cast<int32_t>(std::max<int64_t>(unit, 6000) / 500);
  view->page_cost = std::max(1, 64 * 4 * k.head_dim / 500);
  view->bytes = static_cast<int64_t>(buffer->size());
  return "";
}

}  // namespace fourierkv::kernels
