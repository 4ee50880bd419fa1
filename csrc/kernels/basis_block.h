#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu_block.h"
#include "kernels/target_clones.h"
#include "math/number.h"

// The two passes over a tall basis Q of m rows that projecting and orthogonalising consist of: overlaps Q x, and
// x - Q^T c. A loop works on segments short enough that m rows of one stay in the second-level cache, so that a pass
// may follow the other on the same segment without another read from memory.
namespace torch_ire {

constexpr int64_t kSegmentElems = 4096;

// `rows` coordinates that belong to one tensor: element (r, i) is at data[r * stride + i].
template <class B>
struct BasisSpan {
  B* data;
  int64_t stride;
  int64_t rows;
};

// overlaps[r] += sum over i < count of q[r][begin + i] x[i]. Sums of a segment are in S, their sum is in double. Four
// rows at a time: four streams from memory keep a core busier than one.
template <class B, class S>
TORCH_IRE_INLINE void add_overlaps(const BasisSpan<B>& q, int64_t begin, int64_t count, const S* __restrict x,
                                   double* overlaps) {
  constexpr int64_t kLanes = 32;
  int64_t r = 0;
  for (; r + 4 <= q.rows; r += 4) {
    const B* __restrict row0 = q.data + r * q.stride + begin;
    const B* __restrict row1 = row0 + q.stride;
    const B* __restrict row2 = row1 + q.stride;
    const B* __restrict row3 = row2 + q.stride;
    S lanes[4][kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) {
        const S value = x[i + l];
        lanes[0][l] += to_opmath(row0[i + l]) * value;
        lanes[1][l] += to_opmath(row1[i + l]) * value;
        lanes[2][l] += to_opmath(row2[i + l]) * value;
        lanes[3][l] += to_opmath(row3[i + l]) * value;
      }
    }
    for (int64_t l = 0; i + l < count; ++l) {
      const S value = x[i + l];
      lanes[0][l] += to_opmath(row0[i + l]) * value;
      lanes[1][l] += to_opmath(row1[i + l]) * value;
      lanes[2][l] += to_opmath(row2[i + l]) * value;
      lanes[3][l] += to_opmath(row3[i + l]) * value;
    }
    for (int64_t k = 0; k < 4; ++k) overlaps[r + k] += static_cast<double>(tree_sum(lanes[k], kLanes));
  }
  for (; r < q.rows; ++r) {
    const B* __restrict row = q.data + r * q.stride + begin;
    S lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
      for (int64_t l = 0; l < kLanes; ++l) lanes[l] += to_opmath(row[i + l]) * x[i + l];
    for (int64_t l = 0; i + l < count; ++l) lanes[l] += to_opmath(row[i + l]) * x[i + l];
    overlaps[r] += static_cast<double>(tree_sum(lanes, kLanes));
  }
}

// x[i] -= sum over r of c[r] q[r][begin + i]. Four rows at a time: a fourth of the traffic to x.
template <class B, class S>
TORCH_IRE_INLINE void subtract_combination(const BasisSpan<B>& q, int64_t begin, int64_t count, const S* __restrict c,
                                           S* __restrict x) {
  int64_t r = 0;
  for (; r + 4 <= q.rows; r += 4) {
    const B* __restrict row0 = q.data + r * q.stride + begin;
    const B* __restrict row1 = row0 + q.stride;
    const B* __restrict row2 = row1 + q.stride;
    const B* __restrict row3 = row2 + q.stride;
    const S c0 = c[r], c1 = c[r + 1], c2 = c[r + 2], c3 = c[r + 3];
    for (int64_t i = 0; i < count; ++i)
      x[i] -= (c0 * to_opmath(row0[i]) + c1 * to_opmath(row1[i])) + (c2 * to_opmath(row2[i]) + c3 * to_opmath(row3[i]));
  }
  for (; r < q.rows; ++r) {
    const B* __restrict row = q.data + r * q.stride + begin;
    for (int64_t i = 0; i < count; ++i) x[i] -= c[r] * to_opmath(row[i]);
  }
}

// Calls body(i, count) for the segments of [begin, end).
template <class Body>
TORCH_IRE_INLINE void for_each_segment(int64_t begin, int64_t end, Body body) {
  for (int64_t i = begin; i < end; i += kSegmentElems) body(i, std::min(kSegmentElems, end - i));
}

}  // namespace torch_ire
