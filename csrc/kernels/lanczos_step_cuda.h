#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/basis_workspace_cuda.h"

namespace torch_ire {

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

}  // namespace torch_ire
