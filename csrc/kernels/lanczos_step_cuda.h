#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/basis_workspace_cuda.h"

namespace torch_ire {

// One Lanczos step: w is orthogonalised twice against the `count` rows of `size` elements at `basis`, and written,
// normalised, to the next row unless `next_row` is null. result: count coefficients, then the norm. Four reads of the
// basis, no synchronisation; workspace as basis_workspace says for one tensor and count + 1 rows.
template <class T>
cudaError_t launch_lanczos_step(const T* basis, T* w, T* next_row, int64_t size, int64_t count, double* result,
                                double* workspace, cudaStream_t stream);

}  // namespace torch_ire
