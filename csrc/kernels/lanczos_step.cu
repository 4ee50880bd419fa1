#include <cmath>

#include "kernels/basis_pass.cuh"
#include "kernels/basis_values.cuh"
#include "kernels/lanczos_step_cuda.h"

namespace torch_ire {
namespace {

template <class T>
struct LanczosValues {
  T* w;

  template <int N>
  __device__ bool aligned() const {
    return is_aligned<N>(w);
  }
  template <int N, class S>
  __device__ void load(int64_t i, S (&x)[N]) const {
    load_values<N>(w + i, x);
  }
  template <int N, class S>
  __device__ void store(int64_t i, const S (&residual)[N]) const {
    store_values<N>(w + i, residual);
  }
};

// grid: one block
__global__ void __launch_bounds__(kStreamThreads) norm_kernel(const double* squares, int64_t count, double* norm) {
  double sum = 0.0;
  for (int64_t b = threadIdx.x; b < count; b += blockDim.x) sum += squares[b];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *norm = std::sqrt(sum);
}

// grid: any, striding over the elements
template <class T>
__global__ void __launch_bounds__(kStreamThreads) scale_kernel(const T* w, int64_t size, const double* norm, T* row) {
  const T scale = static_cast<T>(1.0 / *norm);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += stride)
    row[i] = w[i] * scale;
}

}  // namespace

template <class T>
cudaError_t launch_lanczos_step(const T* basis, T* w, T* next_row, int64_t size, int64_t count, double* result,
                                double* memory, cudaStream_t stream) {
  const std::vector<BasisPassSpan<LanczosValues<T>, T>> spans{{{w}, basis, size, size}};
  const BasisWorkspace workspace = basis_workspace_at(memory, 1, count);
  double* const squares = workspace.coefficients + count;  // behind the workspace's rows, one row long
  const int64_t chunks = (size + kStreamChunk - 1) / kStreamChunk;
  const int64_t blocks = chunks < kReduceBlocks ? chunks : kReduceBlocks;
  cudaError_t error = cudaMemsetAsync(result, 0, static_cast<size_t>(count + 1) * sizeof(double), stream);
  for (int pass = 0; pass < 2 && error == cudaSuccess; ++pass) {
    error = launch_basis_overlaps<T>(spans, count, static_cast<const T*>(nullptr), result, workspace, stream);
    if (error == cudaSuccess)
      error = launch_basis_subtract<T>(spans, count, workspace.coefficients, pass == 1 ? squares : nullptr, stream);
  }
  if (error != cudaSuccess) return error;
  TORCH_IRE_LAUNCH(norm_kernel, 1u, kStreamThreads, 0, stream, squares, blocks, result + count);
  if (next_row != nullptr && size > 0)
    TORCH_IRE_LAUNCH(scale_kernel<T>, static_cast<unsigned>(blocks), kStreamThreads, 0, stream, w, size, result + count,
                     next_row);
  return cudaGetLastError();
}

#define TORCH_IRE_INSTANTIATE(T) \
  template cudaError_t launch_lanczos_step<T>(const T*, T*, T*, int64_t, int64_t, double*, double*, cudaStream_t);
TORCH_IRE_INSTANTIATE(float)
TORCH_IRE_INSTANTIATE(double)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
