#pragma once

#include <cstdint>

#include "kernels/basis_block.h"
#include "kernels/basis_workspace.h"
#include "kernels/cuda_types.h"

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

#ifdef TORCH_IRE_WITH_CUDA

// B: storage of the basis, T or bfloat16 along float.
template <class T, class B>
struct LanczosStep {
  T* w;
  const B* basis;  // element (r, i) is at basis[r * stride + i]
  B* next_row;     // null: there is none
  int64_t stride;
  int64_t size;
  int64_t count;  // rows of the basis so far
};

// One Lanczos step: w is orthogonalised twice against the basis, and written, normalised, to the next row. result:
// count coefficients, then the norm. Three reads of the basis from memory (four from about 700 rows on), no
// synchronisation; workspace as basis_workspace says for one tensor and count + 1 rows.
template <class T, class B>
cudaError_t launch_lanczos_step(const LanczosStep<T, B>& step, double* result, double* workspace, cudaStream_t stream);

#endif

}  // namespace torch_ire
