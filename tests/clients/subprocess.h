// A program of this build under test.

#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "tests/compute/model/temp_folder.h"

namespace fourierkv {

// Runs from construction; killed on destruction if it still does.
class Subprocess {
 public:
  // `program` as "fourierkv-server".
  Subprocess(const std::string& program, const std::vector<std::string>& arguments);
  ~Subprocess();
  Subprocess(const Subprocess&) = delete;
  Subprocess& operator=(const Subprocess&) = delete;

  pid_t pid() const { return pid_; }
  void Signal(int number) const;

  // The exit status as shells give it: 128 + signal after a signal. -1 if it does not end in time.
  int Wait(absl::Duration limit = absl::Seconds(30));

  // What was written so far.
  std::string out() const;
  std::string err() const;

  // The address that the program says it listens on; "" if it ends or takes too long first.
  std::string WaitForAddress();
  // Whether stderr contains `text` in time.
  bool WaitForError(const std::string& text);

 private:
  TempFolder folder_;
  pid_t pid_ = -1;
  int status_ = -1;
};

struct Ended {
  int status;
  std::string out;
  std::string err;
};

// Runs a program to its end.
Ended RunProgram(const std::string& program, const std::vector<std::string>& arguments);

}  // namespace fourierkv
