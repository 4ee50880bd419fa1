#pragma once

#include "kernels/basis_block.h"

namespace torch_ire {

// One tensor of the list: theta and previous have the same memory order as the columns of the basis.
template <class T>
struct DisplacementProjectedSpan {
  T* theta;
  const T* previous;
};

// overlaps[r] += part of Q Delta in [begin, end), Delta = theta - keep previous
template <class T, class B>
void displacement_projected_overlaps_range_cpu(const DisplacementProjectedSpan<T>& span, const BasisSpan<const B>& q,
                                               opmath_t<T> keep, int64_t begin, int64_t end, double* overlaps);

// theta += kappa (Delta - Q^T coefficients) in [begin, end)
template <class T, class B>
void displacement_projected_range_cpu(const DisplacementProjectedSpan<T>& span, const BasisSpan<const B>& q,
                                      const opmath_t<T>* coefficients, opmath_t<T> kappa, opmath_t<T> keep,
                                      int64_t begin, int64_t end);

}  // namespace torch_ire
