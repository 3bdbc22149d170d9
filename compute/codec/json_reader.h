// Reads the subset of JSON that our documents need, straight into the caller's structures.

#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

// The caller asks for the type that its schema has at this place, so hostile text can neither nest
// deeper than the schema nor make the reader build anything that the caller did not ask for. The
// subset: objects, arrays, non-negative integers, strings of printable ASCII.
//
// Every failure is InvalidArgument and names the place: "layers[3].k[1][0].bits: expected ...".
// After a failure the reader must not be used again.
class JsonReader {
 public:
  // `text` must outlive the reader.
  explicit JsonReader(absl::string_view text) : text_(text) {}

  // Whether the next value is an object, where the schema allows several types.
  bool AtObject() { return Peek() == '{'; }
  // Calls member(key) at each value, which member must read. Refuses a key that occurs twice.
  absl::Status ReadObject(absl::FunctionRef<absl::Status(absl::string_view key)> member);
  // Calls element(index) at each value, which element must read. Refuses more than `max_size`.
  absl::Status ReadArray(size_t max_size, absl::FunctionRef<absl::Status(size_t index)> element);
  // An integer from low to high; 0 <= low <= high.
  absl::Status ReadInteger(int low, int high, int* out);
  // At most `max_size` characters.
  absl::Status ReadString(size_t max_size, std::string* out);
  // Only white space may follow.
  absl::Status ReadEnd();

  // InvalidArgument at the current place.
  absl::Status Error(absl::string_view message) const;

 private:
  struct Step {  // an object's key, or an array's index where `key` is empty
    std::string key;
    size_t index;
  };

  void SkipSpace();
  // The next character that is not white space; 0 at the end. Does not consume it.
  char Peek();
  bool Consume(char c);
  absl::Status Expected(absl::string_view what);
  absl::StatusOr<char> ReadEscape();

  absl::string_view text_;
  size_t position_ = 0;
  std::vector<Step> path_;
};

}  // namespace fourierkv
