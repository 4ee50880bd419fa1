#pragma once

#include "kernels/basis_block.h"

namespace torch_ire {

// v - Q^T c for one tensor of the list, c = Q v taken over all of them first. B is float or bfloat16, or double for
// double. All arrays are in the memory order of the tensor, [begin, end) is a range of it.

// overlaps[r] += part of Q v in the range
template <class T, class B>
void project_out_overlaps_range_cpu(const T* v, const BasisSpan<const B>& q, int64_t begin, int64_t end,
                                    double* overlaps);

// out = v - Q^T coefficients in the range
template <class T, class B>
void project_out_range_cpu(const T* v, T* out, const BasisSpan<const B>& q, const opmath_t<T>* coefficients,
                           int64_t begin, int64_t end);

}  // namespace torch_ire
