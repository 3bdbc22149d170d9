// A long document with facts hidden in it, and the questions that ask for them.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

struct Needle {
  std::string name;      // eight letters
  std::string number;    // seven digits
  int64_t position = 0;  // of the fact's first byte in the document
};

struct NeedleDocument {
  std::string text;
  std::vector<Needle> needles;  // by position
};

// "\nThe special magic number for NAME mentioned in the text is: "
std::string NeedleQuestion(const Needle& needle);

// `length` bytes of `haystack` (bytes above 127 become '?') with `count` facts
// "\nOne of the special magic numbers for NAME is: DDDDDDD.\n" spread evenly over it, one at a
// random place in each of `count` equal stretches, names and numbers drawn from `seed`.
// InvalidArgument if the haystack is too short or the facts do not fit.
absl::StatusOr<NeedleDocument> HideNeedles(absl::string_view haystack, int64_t length, int count,
                                           uint64_t seed);

}  // namespace fourierkv
