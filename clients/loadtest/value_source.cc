#include "clients/loadtest/value_source.h"

#include <cstring>

#include "clients/loadtest/random.h"
#include "compute/base/bfloat16.h"

namespace fourierkv::loadtest {
namespace {

constexpr uint32_t kPoolTokens = 1 << 14;
constexpr uint32_t kMaxSegmentTokens = 1024;

// Channel d moves towards 0 by 1 / 2^r of its value each token, r from 0 (noise) to 7 (slow), and
// by a random step. Values are about 1 at most.
std::vector<uint16_t> MakePool(uint64_t seed, int head_dim) {
  std::vector<uint16_t> pool(static_cast<size_t>(kPoolTokens + kMaxSegmentTokens) * head_dim);
  for (int d = 0; d < head_dim; ++d) {
    const int slowness = 7 - d * 8 / head_dim;
    const uint64_t stream = Mix64(seed, static_cast<uint64_t>(d));
    int64_t state = 0;
    for (uint32_t t = 0; t < kPoolTokens + kMaxSegmentTokens; ++t) {
      const auto step = static_cast<int64_t>(Mix64(stream + t) >> 48) - (1 << 15);
      state += step - (state >> slowness);
      pool[static_cast<size_t>(t) * head_dim + d] =
          FloatToBf16(static_cast<float>(state) * 0x1p-17F);
    }
  }
  return pool;
}

}  // namespace

ValueSource::ValueSource(uint64_t seed, const KvGeometry& geometry, uint32_t variants)
    : seed_(Mix64(seed, 0x5a1)),
      geometry_(geometry),
      variants_(variants),
      pool_(MakePool(seed_, geometry.head_dim)) {}

uint64_t ValueSource::IdentityOf(const Digest& key) const {
  uint64_t identity = 0;  // keys are hashes already
  for (int i = 0; i < 8; ++i) identity |= uint64_t{key.bytes[i]} << (8 * i);
  return variants_ == 0 ? identity : ToBelow(Mix64(identity), variants_);
}

uint32_t ValueSource::Variant(const Digest& key) const {
  return static_cast<uint32_t>(IdentityOf(key));
}

const uint16_t* ValueSource::Window(uint64_t identity, int layer, Part part, int head) const {
  const uint64_t place = (static_cast<uint64_t>(layer) << 32) | (static_cast<uint64_t>(head) << 1) |
                         static_cast<uint64_t>(part);
  const uint32_t start = ToBelow(Mix64(Mix64(seed_, identity), place), kPoolTokens);
  return pool_.data() + static_cast<size_t>(start) * geometry_.head_dim;
}

void ValueSource::FillFrom(uint64_t identity, int layer, Part part, int tokens,
                           std::span<uint16_t> out) const {
  const size_t values = static_cast<size_t>(tokens) * geometry_.head_dim;
  for (int head = 0; head < geometry_.kv_heads; ++head) {
    std::memcpy(out.data() + head * values, Window(identity, layer, part, head),
                values * sizeof(uint16_t));
  }
}

void ValueSource::Fill(const Digest& key, int layer, Part part, int tokens,
                       std::span<uint16_t> out) const {
  FillFrom(IdentityOf(key), layer, part, tokens, out);
}

void ValueSource::FillVariant(uint32_t variant, int layer, Part part, int tokens,
                              std::span<uint16_t> out) const {
  FillFrom(variant, layer, part, tokens, out);
}

bool ValueSource::Equals(const Digest& key, int layer, Part part, int tokens,
                         std::span<const uint16_t> values) const {
  const size_t count = static_cast<size_t>(tokens) * geometry_.head_dim;
  if (values.size() != count * geometry_.kv_heads) return false;
  const uint64_t identity = IdentityOf(key);
  for (int head = 0; head < geometry_.kv_heads; ++head) {
    if (std::memcmp(values.data() + head * count, Window(identity, layer, part, head),
                    count * sizeof(uint16_t)) != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace fourierkv::loadtest
