#include "kernels/project_out.h"

#include "kernels/basis_pass.cuh"
#include "kernels/basis_values.cuh"

namespace torch_ire {
namespace {

template <class T>
struct ProjectOutValues {
  const T* v;
  T* out;

  template <int N>
  __device__ bool aligned() const {
    return is_aligned<N>(v) && is_aligned<N>(out);
  }
  template <int N, class S>
  __device__ void load(int64_t i, S (&x)[N]) const {
    load_values<N>(v + i, x);
  }
  template <int N, class S>
  __device__ void store(int64_t i, const S (&residual)[N]) const {
    store_values<N>(out + i, residual);
  }
};

}  // namespace

template <class T, class B>
cudaError_t launch_project_out(const std::vector<ProjectOutSpan<T, B>>& given, int64_t rows,
                               const opmath_t<T>* gram_inverse, double* memory, cudaStream_t stream) {
  using S = opmath_t<T>;
  std::vector<BasisPassSpan<ProjectOutValues<T>, B>> spans;
  for (const ProjectOutSpan<T, B>& s : given) spans.push_back({{s.v, s.out}, s.basis, s.stride, s.numel});
  const BasisWorkspace workspace = basis_workspace_at(memory, spans.size(), rows);
  const cudaError_t error = launch_basis_overlaps<S>(spans, rows, gram_inverse, nullptr, workspace, stream);
  if (error != cudaSuccess) return error;
  return launch_basis_subtract<S>(spans, rows, workspace.coefficients, nullptr, stream);
}

#define TORCH_IRE_INSTANTIATE(T, B)                                                                                    \
  template cudaError_t launch_project_out<T, B>(const std::vector<ProjectOutSpan<T, B>>&, int64_t, const opmath_t<T>*, \
                                                double*, cudaStream_t);
TORCH_IRE_INSTANTIATE(float, float)
TORCH_IRE_INSTANTIATE(float, bfloat16)
TORCH_IRE_INSTANTIATE(bfloat16, float)
TORCH_IRE_INSTANTIATE(bfloat16, bfloat16)
TORCH_IRE_INSTANTIATE(float16, float)
TORCH_IRE_INSTANTIATE(float16, bfloat16)
TORCH_IRE_INSTANTIATE(double, double)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
