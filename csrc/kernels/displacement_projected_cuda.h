#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels/basis_workspace_cuda.h"
#include "math/number.h"

namespace torch_ire {

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

}  // namespace torch_ire
