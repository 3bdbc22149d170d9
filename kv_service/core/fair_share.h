// How much of what all share one of them may take.

#pragma once

#include <cstdint>

namespace fourierkv {

// Whether somebody who has `own` may have `more`, where `free` are left; none of them negative. He
// has at most seven times what is left for others (dynamic thresholds: Choudhury and Hahne,
// IEEE/ACM Transactions on Networking 6(2), 1998). So one alone gets seven eighths, and who comes
// next seven eighths of the rest: whoever has nothing finds room though others give nothing back.
inline bool MayTake(int64_t own, int64_t more, int64_t free) {
  return more <= free && own + more <= 7 * free;
}

}  // namespace fourierkv
