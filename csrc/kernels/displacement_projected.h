#pragma once

#include <vector>

#include "kernels/basis_block.h"
#include "kernels/basis_workspace.h"
#include "kernels/cuda_types.h"
#include "math/number.h"

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

#ifdef TORCH_IRE_WITH_CUDA

// One tensor of the list; element (r, i) of its part of the basis is at basis[r * stride + i].
template <class T, class B>
struct DisplacementProjectedCudaSpan {
  T* theta;
  const T* previous;
  const B* basis;
  int64_t stride, numel;
};

// theta += kappa (I - Q^T G Q) Delta, Delta = theta - keep previous, G the inverse Gram matrix or, where null, one. Two
// reads of Q, no synchronisation; workspace as basis_workspace says.
template <class T, class B>
cudaError_t launch_displacement_projected(const std::vector<DisplacementProjectedCudaSpan<T, B>>& spans, int64_t rows,
                                          const opmath_t<T>* gram_inverse, double kappa, double keep, double* workspace,
                                          cudaStream_t stream);

#endif

}  // namespace torch_ire
