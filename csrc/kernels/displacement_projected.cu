#include "kernels/basis_pass.cuh"
#include "kernels/basis_values.cuh"
#include "kernels/displacement_projected.h"

namespace torch_ire {
namespace {

template <class T>
struct DisplacementProjectedValues {
  T* theta;
  const T* previous;
  opmath_t<T> kappa, keep;

  template <int N>
  __device__ bool aligned() const {
    return is_aligned<N>(theta) && is_aligned<N>(previous);
  }
  template <int N, class S>
  __device__ void load(int64_t i, S (&x)[N]) const {
    S before[N];
    load_values<N>(theta + i, x);
    load_values<N>(previous + i, before);
    TORCH_IRE_UNROLL(N)
    for (int k = 0; k < N; ++k) x[k] -= keep * before[k];
  }
  template <int N, class S>
  __device__ void store(int64_t i, const S (&residual)[N]) const {
    S x[N];
    load_values<N>(theta + i, x);
    TORCH_IRE_UNROLL(N)
    for (int k = 0; k < N; ++k) x[k] += kappa * residual[k];
    store_values<N>(theta + i, x);
  }
};

}  // namespace

template <class T, class B>
cudaError_t launch_displacement_projected(const std::vector<DisplacementProjectedCudaSpan<T, B>>& given, int64_t rows,
                                          const opmath_t<T>* gram_inverse, double kappa, double keep, double* memory,
                                          cudaStream_t stream) {
  using S = opmath_t<T>;
  std::vector<BasisPassSpan<DisplacementProjectedValues<T>, B>> spans;
  for (const DisplacementProjectedCudaSpan<T, B>& s : given)
    spans.push_back({{s.theta, s.previous, static_cast<S>(kappa), static_cast<S>(keep)}, s.basis, s.stride, s.numel});
  const BasisWorkspace workspace = basis_workspace_at(memory, spans.size(), rows);
  const cudaError_t error = launch_basis_overlaps<S>(spans, rows, gram_inverse, nullptr, workspace, stream);
  if (error != cudaSuccess) return error;
  return launch_basis_subtract<S>(spans, rows, workspace.coefficients, nullptr, stream);
}

int64_t basis_workspace(size_t num_tensors, int64_t rows) {
  return rows * (basis_partials_of_row(num_tensors) + 2);
}

#define TORCH_IRE_INSTANTIATE(T, B)                                                                                 \
  template cudaError_t launch_displacement_projected<T, B>(const std::vector<DisplacementProjectedCudaSpan<T, B>>&, \
                                                           int64_t, const opmath_t<T>*, double, double, double*,    \
                                                           cudaStream_t);
TORCH_IRE_INSTANTIATE(float, float)
TORCH_IRE_INSTANTIATE(float, bfloat16)
TORCH_IRE_INSTANTIATE(bfloat16, float)
TORCH_IRE_INSTANTIATE(bfloat16, bfloat16)
TORCH_IRE_INSTANTIATE(float16, float)
TORCH_IRE_INSTANTIATE(float16, bfloat16)
TORCH_IRE_INSTANTIATE(double, double)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
