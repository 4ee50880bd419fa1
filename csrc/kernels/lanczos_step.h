#pragma once

#include "kernels/basis_block.h"

namespace torch_ire {

// The passes of one Lanczos step over coordinates [begin, end): V is the basis so far, w the product H v. Between the
// passes the overlaps are summed over all ranges. B: storage of the basis, T or bfloat16 along float.

// overlaps[r] += part of V w
template <class T, class B>
void lanczos_step_overlaps_range_cpu(const T* w, const BasisSpan<const B>& v, int64_t begin, int64_t end,
                                     double* overlaps);

// w -= V^T coefficients, then overlaps[r] += part of V w: the second Gram-Schmidt pass's overlaps from the read that
// ends the first
template <class T, class B>
void lanczos_step_subtract_range_cpu(T* w, const BasisSpan<const B>& v, const T* coefficients, int64_t begin,
                                     int64_t end, double* overlaps);

// w -= V^T coefficients; returns the sum of w^2
template <class T, class B>
double lanczos_step_finish_range_cpu(T* w, const BasisSpan<const B>& v, const T* coefficients, int64_t begin,
                                     int64_t end);

// row = w * scale, rounded to nearest
template <class T, class B>
void lanczos_step_scale_range_cpu(const T* w, B* row, T scale, int64_t begin, int64_t end);

}  // namespace torch_ire
