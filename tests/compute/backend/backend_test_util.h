// Random profiles, caches and their float64 meaning, for tests of backends.

#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "compute/backend/compute_backend.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv {

// A seed that differs from run to run; print it in a SCOPED_TRACE.
uint64_t FreshSeed();

// What a test varies. Channels are dealt to bands at random; every head gets its own deal.
struct CodecCase {
  int head_dim = 128;
  int kv_heads = 2;
  int segment_tokens = 256;
  BasisKind basis = BasisKind::kDct2;
  std::vector<int> coefficients = {8};   // M of each spectral band; empty: all resident
  std::vector<int> resident_bits = {4};  // of each resident band; empty: all spectral
  KvDtype dtype = KvDtype::kBf16;
  std::vector<int> wide_coefficients = {};  // M of each spectral band in bf16
  bool rotate_k = false;                    // every head by a matrix of its own
  bool rotate_v = false;

  bool rotated(Part part) const { return part == Part::kK ? rotate_k : rotate_v; }
  std::string Name() const;
};

// Every head dimension, segment size, M, width, basis and dtype appears; odd band sizes throughout.
std::vector<CodecCase> CodecCases();

std::unique_ptr<ProfileLayout> RandomLayout(const CodecCase& test, std::mt19937_64& random);

// [heads][tokens][head_dim]: drifting channels with noise, some constant, some zero, some far from
// zero.
std::vector<uint16_t> RandomKv(int heads, int tokens, int head_dim, KvDtype dtype,
                               std::mt19937_64& random);

std::vector<float> RandomQueries(int64_t count, float deviation, std::mt19937_64& random);

// One layer's cache with `compact` segments and exact blocks of the given lengths, and what it
// means.
class TestCache {
 public:
  TestCache(const CodecCase& test, int compact, std::vector<int> exact, std::mt19937_64& random);

  LayerKv View() const;
  int64_t tokens() const { return tokens_; }

  // Float64 attention. q: [query_tokens][query_heads][head_dim]; query token i does not see the
  // last query_tokens - 1 - i tokens.
  struct Expected {
    std::vector<double> out;  // as q
    std::vector<double> lse;  // [query_tokens][query_heads]
  };
  Expected Attend(const std::vector<float>& q, int query_tokens, int query_heads,
                  double scale) const;

 private:
  void Append(const std::vector<double>& k, const std::vector<double>& v, int tokens);

  CodecCase test_;
  std::unique_ptr<ProfileLayout> layout_;
  std::vector<std::vector<std::byte>> payloads_;   // K, V, K, V ...
  std::vector<std::vector<uint16_t>> exact_data_;  // K, V, K, V ...
  std::vector<CompactBlock> compact_;
  std::vector<ExactBlock> exact_;
  int64_t tokens_ = 0;
  std::vector<std::vector<double>> k_, v_;  // per head: [tokens][head_dim]
};

// ||a - b|| / ||b||.
double RelativeError(const std::vector<float>& a, const std::vector<double>& b);

}  // namespace fourierkv
