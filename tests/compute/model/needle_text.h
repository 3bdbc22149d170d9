// Prompts for needle-4m: text with facts in it, then the question for one of them.

#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "compute/model/byte_tokenizer.h"

namespace fourierkv {

// Lines of documentation, as the model was taught with, `facts` facts among them, and the question
// for one of these: `length` tokens in all, or a few more. The model goes on with `number`.
struct NeedleText {
  NeedleText(int64_t length, int facts, uint64_t seed) {
    std::mt19937_64 random(seed);
    const auto draw = [&](uint64_t bound) { return static_cast<size_t>(random() % bound); };
    std::string text = "# Notes\n\n";
    const auto asked = static_cast<int>(draw(facts));
    std::string name;
    constexpr int64_t kQuestion = 69;
    for (int i = 0; i < facts; ++i) {
      // The facts stand in the middle of equal stretches.
      const int64_t until = (length - kQuestion) * (2 * i + 1) / (2 * facts) - 30;
      while (static_cast<int64_t>(text.size()) < until) AddLine(&text, draw);
      std::string fact_name, fact_number;
      for (int c = 0; c < 8; ++c) {
        fact_name += c % 2 == 0 ? "bcdfghjklmnprstvwz"[draw(18)] : "aeiou"[draw(5)];
      }
      for (int c = 0; c < 7; ++c) fact_number += static_cast<char>('0' + draw(10));
      text += "\nOne of the special magic numbers for " + fact_name + " is: " + fact_number + ".\n";
      if (i != asked) continue;
      name = fact_name;
      number = fact_number;
    }
    while (static_cast<int64_t>(text.size()) < length - kQuestion) AddLine(&text, draw);
    text += "\nThe special magic number for " + name + " mentioned in the text is: ";
    tokens = EncodeBytes(text);
  }

  std::vector<int32_t> tokens;
  std::string number;

 private:
  template <typename Draw>
  static void AddLine(std::string* text, const Draw& draw) {
    static const char* const kSubjects[] = {"The parser", "This function", "A request",
                                            "The cache",  "Each module",   "The default value",
                                            "An iterator"};
    static const char* const kVerbs[] = {"returns", "reads",     "is called with", "keeps",
                                         "raises",  "overrides", "depends on"};
    static const char* const kObjects[] = {"the name of the file", "an empty list",
                                           "the given options",    "a copy of the string",
                                           "its arguments",        "the next line of input",
                                           "a dictionary of keys"};
    static const char* const kEnds[] = {".\n", " if it is set.\n", " by default.\n",
                                        ", see below.\n", " when `None` is given.\n"};
    *text += kSubjects[draw(7)];
    *text += std::string(" ") + kVerbs[draw(7)] + " " + kObjects[draw(7)] + kEnds[draw(5)];
  }
};

}  // namespace fourierkv
