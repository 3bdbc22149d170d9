// The cells of an evaluation's table, the same for text and HTML.

#pragma once

#include <string>
#include <vector>

#include "clients/eval/eval_run.h"

namespace fourierkv {

struct EvalColumn {
  std::string title;
  std::string meaning;
};

// One column per cell of EvalCells. `dense` is the section's first row.
std::vector<EvalColumn> EvalColumns(const EvalPlan& plan);
std::vector<std::string> EvalCells(const EvalPlan& plan, const EvalRow& row, const EvalRow& dense);

// Whether it stands for what is under test, and not for what that is compared with.
inline bool IsUnderTest(const EvalRow& row) {
  return row.kind == FormKind::kProfile || row.kind == FormKind::kArchived;
}

// A control's name says which profile's bytes it was given.
std::string RowTitle(const EvalRow& row, const EvalPlan& plan);

}  // namespace fourierkv
