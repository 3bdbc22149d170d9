// What KV tensors hold: a pure function of seed and block key, made as fast as memory is copied.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "compute/base/content_hash.h"
#include "compute/base/geometry.h"

namespace fourierkv::loadtest {

// bf16 values. A pool of them varies along time as channels of KV caches do, some slowly and some
// fast; every head of every part is a window of the pool whose start is a hash of seed, block key,
// layer, part and head. All of it is integer arithmetic: the same on every machine.
//
// Thread safe. About 4 MiB at a head dimension of 128.
class ValueSource {
 public:
  // With `variants` > 0 a key stands for one of so many images (Variant), so that encoded forms of
  // all can be made in advance; 0: every key has values of its own.
  ValueSource(uint64_t seed, const KvGeometry& geometry, uint32_t variants);

  const KvGeometry& geometry() const { return geometry_; }
  uint32_t variants() const { return variants_; }
  uint32_t Variant(const Digest& key) const;  // requires variants() > 0

  // out: [kv_heads][tokens][head_dim], tokens at most 1024.
  void Fill(const Digest& key, int layer, Part part, int tokens, std::span<uint16_t> out) const;
  void FillVariant(uint32_t variant, int layer, Part part, int tokens,
                   std::span<uint16_t> out) const;

  // Whether `values`, as Fill writes them, are those of the key.
  bool Equals(const Digest& key, int layer, Part part, int tokens,
              std::span<const uint16_t> values) const;

 private:
  uint64_t IdentityOf(const Digest& key) const;
  const uint16_t* Window(uint64_t identity, int layer, Part part, int head) const;
  void FillFrom(uint64_t identity, int layer, Part part, int tokens, std::span<uint16_t> out) const;

  const uint64_t seed_;
  const KvGeometry geometry_;
  const uint32_t variants_;
  std::vector<uint16_t> pool_;  // [kPoolTokens + 1024][head_dim]
};

}  // namespace fourierkv::loadtest
