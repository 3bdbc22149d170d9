// Checks of flags that CLI11 does not have.

#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace fourierkv {

// 0 to `most`. CLI::Range would let NaN through.
inline CLI::Validator SecondsUpTo(double most) {
  return CLI::Validator(
      [most](const std::string& text) {
        double value = 0;
        const bool right = absl::SimpleAtod(text, &value) && value >= 0 && value <= most;
        return right ? std::string() : absl::StrCat("must be 0 to ", most, " seconds");
      },
      "SECONDS");
}

}  // namespace fourierkv
