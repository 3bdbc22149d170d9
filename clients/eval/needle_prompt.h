// A long document with facts hidden in it, and the questions that ask for them.

#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

struct Needle {
  std::string name;      // eight letters, consonant and vowel in turn
  std::string number;    // seven digits
  int64_t position = 0;  // of the fact's first byte in the document
};

struct NeedleDocument {
  std::string text;
  std::vector<Needle> needles;  // by position
};

// "\nOne of the special magic numbers for NAME is: DDDDDDD.\n"
std::string NeedleFact(const Needle& needle);

// "\nThe special magic number for NAME mentioned in the text is: "
std::string NeedleQuestion(const Needle& needle);

// `length` bytes of `haystack` (bytes above 127 become '?') with `count` facts spread evenly over
// it, one at a random place in each of `count` equal stretches, names and numbers drawn from
// `seed`. InvalidArgument if the haystack is too short or the facts do not fit.
absl::StatusOr<NeedleDocument> HideNeedles(absl::string_view haystack, int64_t length, int count,
                                           uint64_t seed);

// The parts of which prompts are made. All draw the same on every machine, unlike the standard
// distributions.
int64_t Draw(std::mt19937_64& random, int64_t bound);  // 0 to bound - 1
std::string DrawName(std::mt19937_64& random);
std::string DrawNumber(std::mt19937_64& random);

// `name` with the letter at `position` (0 to 7) replaced by another consonant or vowel.
std::string NearName(const std::string& name, int position, std::mt19937_64& random);

// `haystack`, cut into equal stretches of which each has one of `sentences`, in this order, at a
// random place. `positions` (may be null) gets where each begins in the result.
std::string Scatter(absl::string_view haystack, std::span<const std::string> sentences,
                    std::mt19937_64& random, std::vector<int64_t>* positions);

// Bytes above 127 as '?': what byte-level models read.
std::string ToAscii(absl::string_view text);

}  // namespace fourierkv
