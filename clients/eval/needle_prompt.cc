#include "clients/eval/needle_prompt.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

constexpr absl::string_view kConsonants = "bcdfghjklmnprstvwz";
constexpr absl::string_view kVowels = "aeiou";
constexpr int kNameLetters = 8;
constexpr int kDigits = 7;

char DrawFrom(absl::string_view letters, std::mt19937_64& random) {
  return letters[Draw(random, static_cast<int64_t>(letters.size()))];
}

absl::string_view LettersAt(int position) { return position % 2 == 0 ? kConsonants : kVowels; }

}  // namespace

int64_t Draw(std::mt19937_64& random, int64_t bound) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(bound));
}

std::string DrawName(std::mt19937_64& random) {
  std::string name;
  for (int i = 0; i < kNameLetters; ++i) name += DrawFrom(LettersAt(i), random);
  return name;
}

std::string DrawNumber(std::mt19937_64& random) {
  std::string number;
  for (int i = 0; i < kDigits; ++i) number += static_cast<char>('0' + Draw(random, 10));
  return number;
}

std::string NearName(const std::string& name, int position, std::mt19937_64& random) {
  std::string near = name;
  while (near[position] == name[position]) near[position] = DrawFrom(LettersAt(position), random);
  return near;
}

std::string NeedleFact(const Needle& needle) {
  return absl::StrCat("\nOne of the special magic numbers for ", needle.name,
                      " is: ", needle.number, ".\n");
}

std::string NeedleQuestion(const Needle& needle) {
  return absl::StrCat("\nThe special magic number for ", needle.name,
                      " mentioned in the text is: ");
}

std::string ToAscii(absl::string_view text) {
  std::string ascii(text);
  std::replace_if(
      ascii.begin(), ascii.end(), [](char c) { return static_cast<unsigned char>(c) > 127; }, '?');
  return ascii;
}

std::string Scatter(absl::string_view haystack, std::span<const std::string> sentences,
                    std::mt19937_64& random, std::vector<int64_t>* positions) {
  const auto size = static_cast<int64_t>(haystack.size());
  const auto count = static_cast<int64_t>(sentences.size());
  std::string text;
  int64_t taken = 0;  // of the haystack
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = size * i / count;
    const int64_t end = size * (i + 1) / count;
    const int64_t place = begin + Draw(random, std::max<int64_t>(end - begin, 1));
    absl::StrAppend(&text, haystack.substr(taken, place - taken));
    taken = place;
    if (positions != nullptr) positions->push_back(static_cast<int64_t>(text.size()));
    absl::StrAppend(&text, sentences[i]);
  }
  absl::StrAppend(&text, haystack.substr(taken));
  return text;
}

absl::StatusOr<NeedleDocument> HideNeedles(absl::string_view haystack, int64_t length, int count,
                                           uint64_t seed) {
  const auto fact_bytes = static_cast<int64_t>(NeedleFact({"abababab", "0000000", 0}).size());
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
  std::vector<std::string> facts;
  while (static_cast<int>(facts.size()) < count) {
    Needle needle = {DrawName(random), DrawNumber(random), 0};
    if (!names.insert(needle.name).second) continue;
    facts.push_back(NeedleFact(needle));
    document.needles.push_back(std::move(needle));
  }
  std::vector<int64_t> positions;
  document.text = Scatter(ToAscii(haystack.substr(0, hay_bytes)), facts, random, &positions);
  for (int i = 0; i < count; ++i) document.needles[i].position = positions[i];
  return document;
}

}  // namespace fourierkv
