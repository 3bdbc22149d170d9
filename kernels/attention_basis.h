// The basis as operands of the attention kernel, in the order in which lanes read them. On the
// host.

#pragma once

#include <cstdint>
#include <vector>

#include "kernels/segment_view.h"

namespace fourierkv::kernels {

// For scores and for weights: [unit][block][tile][lane][registers], for as many blocks of 16
// columns as `blocks` (AttentionPlanView::basis_blocks) says. `part` has pointers to host memory.
std::vector<uint32_t> ScoreBasis(const PartView& part, int blocks);
std::vector<uint32_t> WeightBasis(const PartView& part, int blocks);

// For the weights of uniform heads, from a dct2 or dft basis of 256 tokens:
// [b][lane][4 registers]: A operands; rows 0-7 are C of column r, rows 8-15 S; columns are tokens
// (q, k), (q, k + 4) of q = 8 c + b, then of q = 8 c + 4 + b, turned by 128 tokens for k + 4.
// Column 0 is 1, for the softmax's sum. Then f32 [r][4 k][2]: cosine and sine of 32 k w, times 16
// if k is odd.
std::vector<uint32_t> PhaseTable(const PartView& part);

}  // namespace fourierkv::kernels
