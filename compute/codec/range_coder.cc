#include "compute/codec/range_coder.h"

namespace fourierkv {

void RangeEncoder::Shift() {
  for (int i = 0; i < 4; ++i) {
    out_->push_back(static_cast<std::byte>(low_ >> 56));
    low_ <<= 8;
  }
  range_ <<= 32;
}

void RangeEncoder::Carry() {
  // The code is below 1, so a byte that is not 0xff comes before the first one.
  for (size_t i = out_->size(); i-- > first_;) {
    (*out_)[i] = static_cast<std::byte>(std::to_integer<unsigned>((*out_)[i]) + 1);
    if ((*out_)[i] != std::byte{0}) return;
  }
}

void RangeEncoder::Finish() {
  // The number in [low, low + range) that has the most trailing zeros: round low up to ever more of
  // them while that stays inside.
  uint64_t value = low_;
  for (int bits = 1; bits < 64; ++bits) {
    const uint64_t mask = (uint64_t{1} << bits) - 1;
    const uint64_t up = (low_ + mask) & ~mask;  // wraps to a carry
    if (up - low_ >= range_) break;
    value = up;
  }
  Add(value - low_);
  low_ = value;
  for (; low_ != 0; low_ <<= 8) out_->push_back(static_cast<std::byte>(low_ >> 56));
}

RangeDecoder::RangeDecoder(std::span<const std::byte> in) : in_(in) {
  range_ = 0;  // so that the first eight bytes shift in without effect
  Shift();
  Shift();
  range_ = ~uint64_t{0};
}

void RangeDecoder::Shift() {
  for (int i = 0; i < 4; ++i) {
    uint64_t next = 0;
    if (at_ < in_.size()) {
      next = std::to_integer<uint64_t>(in_[at_++]);
    } else if (missing_ < 1 << 20) {
      ++missing_;
    }
    code_ = code_ << 8 | next;
  }
  range_ <<= 32;
}

}  // namespace fourierkv
