// Random numbers that depend on nothing but their seed and number: the same on every machine,
// whichever thread asks for them and in which order.

#pragma once

#include <cstdint>

namespace fourierkv::loadtest {

// A bijection of 64 bits whose outputs look random (the finaliser of SplitMix64, Steele et al.,
// "Fast splittable pseudorandom number generators", 2014).
constexpr uint64_t Mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

constexpr uint64_t Mix64(uint64_t seed, uint64_t number) { return Mix64(Mix64(seed) + number); }

// Uniform in [0, 1), in steps of 2^-53.
constexpr double ToUnit(uint64_t random) { return static_cast<double>(random >> 11) * 0x1p-53; }

// Uniform in [0, bound), for bounds far below 2^32.
constexpr uint32_t ToBelow(uint64_t random, uint32_t bound) {
  return static_cast<uint32_t>(((random >> 32) * bound) >> 32);
}

}  // namespace fourierkv::loadtest
