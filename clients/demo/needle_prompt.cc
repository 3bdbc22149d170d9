#include "clients/demo/needle_prompt.h"

#include <algorithm>
#include <random>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

// The same numbers on every machine, unlike the standard distributions.
int64_t Draw(std::mt19937_64& random, int64_t bound) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(bound));
}

std::string DrawName(std::mt19937_64& random) {
  constexpr absl::string_view kConsonants = "bcdfghjklmnprstvwz";
  constexpr absl::string_view kVowels = "aeiou";
  std::string name;
  for (int i = 0; i < 4; ++i) {
    name += kConsonants[Draw(random, static_cast<int64_t>(kConsonants.size()))];
    name += kVowels[Draw(random, static_cast<int64_t>(kVowels.size()))];
  }
  return name;
}

std::string DrawNumber(std::mt19937_64& random) {
  std::string number;
  for (int i = 0; i < 7; ++i) number += static_cast<char>('0' + Draw(random, 10));
  return number;
}

std::string Fact(const Needle& needle) {
  return absl::StrCat("\nOne of the special magic numbers for ", needle.name,
                      " is: ", needle.number, ".\n");
}

}  // namespace

std::string NeedleQuestion(const Needle& needle) {
  return absl::StrCat("\nThe special magic number for ", needle.name,
                      " mentioned in the text is: ");
}

absl::StatusOr<NeedleDocument> HideNeedles(absl::string_view haystack, int64_t length, int count,
                                           uint64_t seed) {
  const int64_t fact_bytes = static_cast<int64_t>(Fact({"abababab", "0000000", 0}).size());
  const int64_t hay_bytes = length - count * fact_bytes;
  if (count < 1 || hay_bytes < 2 * count * fact_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(count, " facts do not fit into ", length, " tokens; ask for fewer or more"));
  }
  if (static_cast<int64_t>(haystack.size()) < hay_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("the text has ", haystack.size(), " bytes; ",
                                                   hay_bytes, " are needed: give a longer one"));
  }
  std::mt19937_64 random(seed);
  std::set<std::string> names;
  NeedleDocument document;
  int64_t taken = 0;  // of the haystack
  for (int i = 0; i < count; ++i) {
    const int64_t begin = hay_bytes * i / count;
    const int64_t end = hay_bytes * (i + 1) / count;
    const int64_t place = begin + Draw(random, end - begin);
    absl::StrAppend(&document.text, haystack.substr(taken, place - taken));
    taken = place;
    Needle needle;
    do {
      needle.name = DrawName(random);
    } while (!names.insert(needle.name).second);
    needle.number = DrawNumber(random);
    needle.position = static_cast<int64_t>(document.text.size());
    absl::StrAppend(&document.text, Fact(needle));
    document.needles.push_back(std::move(needle));
  }
  absl::StrAppend(&document.text, haystack.substr(taken, hay_bytes - taken));
  std::replace_if(
      document.text.begin(), document.text.end(),
      [](char c) { return static_cast<unsigned char>(c) > 127; }, '?');
  return document;
}

}  // namespace fourierkv
