#pragma once

#include <vector>

#include "kernels/basis_block.h"
#include "kernels/basis_workspace.h"
#include "kernels/cuda_types.h"
#include "math/number.h"

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

#ifdef TORCH_IRE_WITH_CUDA

// One tensor of the list; element (r, i) of its part of the basis is at basis[r * stride + i].
template <class T, class B>
struct ProjectOutSpan {
  const T* v;
  T* out;
  const B* basis;
  int64_t stride, numel;
};

// out = v - Q^T G Q v, G the inverse Gram matrix or, where null, one. Two reads of Q, no synchronisation; workspace as
// basis_workspace says.
template <class T, class B>
cudaError_t launch_project_out(const std::vector<ProjectOutSpan<T, B>>& spans, int64_t rows,
                               const opmath_t<T>* gram_inverse, double* workspace, cudaStream_t stream);

#endif

}  // namespace torch_ire
