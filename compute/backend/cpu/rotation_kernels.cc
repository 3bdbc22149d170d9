#include "compute/backend/cpu/rotation_kernels.h"

#include <cblas.h>

#include "compute/backend/cpu/kernels.h"

namespace fourierkv::cpu {
namespace {

void Multiply(CBLAS_TRANSPOSE transpose, const float* u, int head_dim, int64_t rows,
              const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, transpose, static_cast<int>(rows), head_dim, head_dim,
              1.0f, from, static_cast<int>(from_stride), u, head_dim, 0.0f, to,
              static_cast<int>(to_stride));
}

}  // namespace

void RotateRows(const float* u, int head_dim, int64_t rows, const float* from, int64_t from_stride,
                float* to, int64_t to_stride) {
  Multiply(CblasNoTrans, u, head_dim, rows, from, from_stride, to, to_stride);
}

void RotateRowsBack(const float* u, int head_dim, int64_t rows, const float* from,
                    int64_t from_stride, float* to, int64_t to_stride) {
  Multiply(CblasTrans, u, head_dim, rows, from, from_stride, to, to_stride);
}

float* DecodeHeadRotatedBack(const PartLayout& layout, int head, const std::byte* payload,
                             int64_t stride, ScratchArena& arena) {
  float* rows = arena.Take<float>(layout.segment_tokens * stride);
  DecodeHead(layout, head, payload, rows, stride, arena);
  const float* u = layout.heads[head].rotation;
  if (u == nullptr) return rows;
  float* back = arena.Take<float>(layout.segment_tokens * stride);
  RotateRowsBack(u, layout.head_dim, layout.segment_tokens, rows, stride, back, stride);
  return back;
}

}  // namespace fourierkv::cpu
