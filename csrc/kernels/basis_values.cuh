#pragma once

#include "kernels/basis_pass.cuh"
#include "kernels/basis_workspace.h"

namespace torch_ire {

// N elements in the arithmetic's precision, and back, rounded to nearest.
template <int N, class T, class S>
__device__ inline void load_values(const T* from, S (&x)[N]) {
  const Lanes<T, N> lanes = load_lanes<N>(from);
  TORCH_IRE_UNROLL(N)
  for (int k = 0; k < N; ++k) x[k] = to_opmath(lanes.lane[k]);
}
template <int N, class T, class S>
__device__ inline void store_values(T* to, const S (&x)[N]) {
  Lanes<T, N> lanes;
  TORCH_IRE_UNROLL(N)
  for (int k = 0; k < N; ++k) lanes.lane[k] = round_nearest<T>::from(x[k]);
  store_lanes<N>(to, lanes);
}

inline int64_t basis_partials_of_row(size_t num_tensors) {
  constexpr size_t kSpansOfAnyLaunch = 256;  // fewer than every operator's pack holds
  return BasisWorkspace::partials_of_row(num_tensors / kSpansOfAnyLaunch + 1);
}

inline BasisWorkspace basis_workspace_at(double* memory, size_t num_tensors, int64_t rows) {
  const int64_t stride = basis_partials_of_row(num_tensors);
  double* const overlaps = memory + rows * stride;
  return {memory, stride, overlaps, overlaps + rows};
}

}  // namespace torch_ire
