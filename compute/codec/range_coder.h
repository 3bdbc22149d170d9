// A binary range coder: integer arithmetic only, so that every machine reads the same symbols.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace fourierkv {

// The probability that a bit is 1, in units of 2^-16. Moves a 64th of the way towards every bit
// that is coded with it, and stays between kLow and kHigh.
class AdaptiveBit {
 public:
  static constexpr int kBits = 16;
  static constexpr int kRate = 6;
  static constexpr uint16_t kLow = 32;
  static constexpr uint16_t kHigh = 65536 - 32;

  AdaptiveBit() = default;
  explicit AdaptiveBit(uint16_t probability) : probability_(probability) {}

  uint16_t probability() const { return probability_; }
  void Update(bool bit);

 private:
  uint16_t probability_ = 1 << (kBits - 1);
};

inline void AdaptiveBit::Update(bool bit) {
  const int target = bit ? kHigh : kLow;
  probability_ = static_cast<uint16_t>(probability_ + ((target - probability_) >> kRate));
}

// Appends to a byte vector. The interval [low, low + range) is kept in 64 bits of which the upper
// 32 are output at a time; a carry out of `low` is added to what has been output.
class RangeEncoder {
 public:
  explicit RangeEncoder(std::vector<std::byte>* out) : out_(out), first_(out->size()) {}

  void Put(bool bit, AdaptiveBit& with) {
    PutWith(bit, with.probability());
    with.Update(bit);
  }
  // The `count` low bits of `value`, the highest first, each as likely 0 as 1.
  void PutRaw(uint32_t value, int count) {
    while (count-- > 0) {
      range_ >>= 1;
      if ((value >> count & 1) != 0) Add(range_);
      Normalize();
    }
  }
  // Ends the code: the shortest bytes that identify it. The encoder must not be used again.
  void Finish();

 private:
  void PutWith(bool bit, uint32_t probability) {
    const uint64_t ones = (range_ >> AdaptiveBit::kBits) * probability;
    if (bit) {
      range_ = ones;
    } else {
      Add(ones);
      range_ -= ones;
    }
    Normalize();
  }
  void Add(uint64_t offset) {
    low_ += offset;
    if (low_ < offset) Carry();
  }
  void Normalize() {
    if (range_ < uint64_t{1} << 32) Shift();
  }
  void Shift();
  void Carry();

  uint64_t low_ = 0;
  uint64_t range_ = ~uint64_t{0};
  std::vector<std::byte>* out_;
  size_t first_;
};

// Reads what RangeEncoder wrote. Behind the end of the bytes it reads zeros, of which the encoder
// leaves out at most 8. Any input is safe, if without meaning.
class RangeDecoder {
 public:
  explicit RangeDecoder(std::span<const std::byte> in);

  bool Get(AdaptiveBit& with) {
    const uint64_t ones = (range_ >> AdaptiveBit::kBits) * with.probability();
    const bool bit = code_ < ones;
    if (bit) {
      range_ = ones;
    } else {
      code_ -= ones;
      range_ -= ones;
    }
    with.Update(bit);
    if (range_ < uint64_t{1} << 32) Shift();
    return bit;
  }
  uint32_t GetRaw(int count) {
    uint32_t value = 0;
    while (count-- > 0) {
      range_ >>= 1;
      const bool bit = code_ >= range_;
      if (bit) code_ -= range_;
      value = value << 1 | (bit ? 1 : 0);
      if (range_ < uint64_t{1} << 32) Shift();
    }
    return value;
  }
  // Whether the bytes read are those that an encoder would have written for what was read.
  bool AtEnd() const { return at_ == in_.size() && missing_ <= 8; }

 private:
  void Shift();

  uint64_t code_ = 0;  // distance from the low end of the interval
  uint64_t range_ = ~uint64_t{0};
  std::span<const std::byte> in_;
  size_t at_ = 0;
  int missing_ = 0;  // bytes read behind the end
};

}  // namespace fourierkv
