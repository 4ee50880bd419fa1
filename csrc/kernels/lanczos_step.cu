#include <cmath>

#include "kernels/basis_pass.cuh"
#include "kernels/basis_values.cuh"
#include "kernels/lanczos_step.h"

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

// Rows of the basis that a block of the fused pass keeps sums for in its shared memory.
constexpr int64_t kMaxFusedRows = 768;
// Blocks of the fused pass: two on each of 128 SMs or more. It reads 16 bytes a thread and row twice, and with so few
// threads on an SM the 8 KB that they read of a row stay in its first-level cache up to some 25 rows, and those of all
// SMs in the second-level cache beyond.
constexpr int64_t kFusedBlocks = 256;
constexpr int kFusedRows = 4;  // rows whose sums a warp reduces together

// grid: kFusedBlocks or fewer, striding over segments of one vector a thread; shared memory: a double for every row and
// warp. Ends the first Gram-Schmidt pass, w -= V^T coefficients, and takes the overlaps V w of the second while the
// segment of V is in the cache. Sums of a warp are in the arithmetic's precision, their sum is in double.
template <class T, class B>
__global__ void __launch_bounds__(kStreamThreads, 3)
    subtract_overlaps_kernel(TORCH_IRE_GRID_CONSTANT(LanczosStep<T, B>) s, const double* coefficients,
                             TORCH_IRE_GRID_CONSTANT(BasisWorkspace) workspace) {
  constexpr int N = kLanesOf<T>;
  TORCH_IRE_DYNAMIC_SHARED(double, sums);
  const int64_t warps = blockDim.x / kWarpThreads;
  const int64_t warp = threadIdx.x / kWarpThreads;
  const bool first_lane = threadIdx.x % kWarpThreads == 0;
  for (int64_t j = threadIdx.x; j < s.count * warps; j += blockDim.x) sums[j] = 0.0;
  __syncthreads();
  const bool aligned = is_aligned<N>(s.w) && is_aligned<N>(s.basis) && (s.count <= 1 || s.stride % N == 0);
  const int64_t segment = static_cast<int64_t>(blockDim.x) * N;
  // Every thread takes every turn, for no lane of a warp may miss its shuffles.
  for (int64_t begin = blockIdx.x * segment; begin < s.size; begin += gridDim.x * segment) {
    const int64_t i = begin + static_cast<int64_t>(threadIdx.x) * N;
    const int64_t left = s.size - i;
    const bool whole = aligned && left >= N;
    T x[N] = {};
    if (whole) {
      load_values<N>(s.w + i, x);
      TORCH_IRE_UNROLL(8)
      for (int64_t r = 0; r < s.count; ++r) {
        const Lanes<B, N> q = load_lanes<N>(s.basis + r * s.stride + i);
        const T coefficient = static_cast<T>(coefficients[r]);
        TORCH_IRE_UNROLL(N)
        for (int k = 0; k < N; ++k) x[k] -= coefficient * to_opmath(q.lane[k]);
      }
      store_values<N>(s.w + i, x);
    } else {
      TORCH_IRE_UNROLL(N)
      for (int k = 0; k < N; ++k) {
        if (k >= left) continue;
        x[k] = s.w[i + k];
        for (int64_t r = 0; r < s.count; ++r)
          x[k] -= static_cast<T>(coefficients[r]) * to_opmath(s.basis[r * s.stride + i + k]);
        s.w[i + k] = x[k];
      }
    }
    for (int64_t first = 0; first < s.count; first += kFusedRows) {
      T sum[kFusedRows] = {};
      TORCH_IRE_UNROLL(kFusedRows)
      for (int r = 0; r < kFusedRows; ++r) {  // past the last row the last one again, whose sum nobody takes
        const B* const row = s.basis + (first + r < s.count ? first + r : s.count - 1) * s.stride + i;
        if (whole) {
          const Lanes<B, N> q = load_lanes<N>(row);
          TORCH_IRE_UNROLL(N)
          for (int k = 0; k < N; ++k) sum[r] += to_opmath(q.lane[k]) * x[k];
        } else {
          TORCH_IRE_UNROLL(N)
          for (int k = 0; k < N; ++k)
            if (k < left) sum[r] += to_opmath(row[k]) * x[k];
        }
      }
      TORCH_IRE_UNROLL(kFusedRows)
      for (int r = 0; r < kFusedRows; ++r) {
        const T of_warp = warp_reduce(sum[r], [](T a, T b) { return a + b; });
        if (first_lane && first + r < s.count) sums[(first + r) * warps + warp] += static_cast<double>(of_warp);
      }
    }
  }
  __syncthreads();
  for (int64_t r = threadIdx.x; r < s.count; r += blockDim.x) {
    double total = 0.0;
    for (int64_t w = 0; w < warps; ++w) total += sums[r * warps + w];
    workspace.partials[r * workspace.stride + blockIdx.x] = total;
  }
}

// grid: one block
__global__ void __launch_bounds__(kStreamThreads) norm_kernel(const double* squares, int64_t count, double* norm) {
  double sum = 0.0;
  for (int64_t b = threadIdx.x; b < count; b += blockDim.x) sum += squares[b];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *norm = std::sqrt(sum);
}

// grid: any, striding over the elements
template <class T, class B>
__global__ void __launch_bounds__(kStreamThreads) scale_kernel(const T* w, int64_t size, const double* norm, B* row) {
  const T scale = static_cast<T>(1.0 / *norm);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += stride)
    row[i] = round_nearest<B>::from(w[i] * scale);
}

// w -= V^T coefficients, then V w into the workspace's coefficients and on top of `result`
template <class T, class B>
cudaError_t launch_subtract_overlaps(const LanczosStep<T, B>& step,
                                     const std::vector<BasisPassSpan<LanczosValues<T>, B>>& spans, double* result,
                                     const BasisWorkspace& workspace, cudaStream_t stream) {
  if (step.count > kMaxFusedRows) {
    const cudaError_t error =
        launch_basis_subtract<T>(spans, step.count, workspace.coefficients, static_cast<double*>(nullptr), stream);
    if (error != cudaSuccess) return error;
    return launch_basis_overlaps<T>(spans, step.count, static_cast<const T*>(nullptr), result, workspace, stream);
  }
  if (step.size == 0) return cudaSuccess;
  constexpr int64_t kSegment = kStreamThreads * kLanesOf<T>;
  const int64_t segments = (step.size + kSegment - 1) / kSegment;
  const int64_t blocks = segments < kFusedBlocks ? segments : kFusedBlocks;
  const size_t shared_bytes = static_cast<size_t>(step.count) * (kStreamThreads / kWarpThreads) * sizeof(double);
  TORCH_IRE_LAUNCH((subtract_overlaps_kernel<T, B>), static_cast<unsigned>(blocks), kStreamThreads, shared_bytes,
                   stream, step, static_cast<const double*>(workspace.coefficients), workspace);
  TORCH_IRE_LAUNCH(basis_coefficients_kernel<T>, 1u, kStreamThreads, 0, stream, step.count, blocks,
                   static_cast<const T*>(nullptr), result, workspace);
  return cudaGetLastError();
}

}  // namespace

template <class T, class B>
cudaError_t launch_lanczos_step(const LanczosStep<T, B>& step, double* result, double* memory, cudaStream_t stream) {
  const std::vector<BasisPassSpan<LanczosValues<T>, B>> spans{{{step.w}, step.basis, step.stride, step.size}};
  const BasisWorkspace workspace = basis_workspace_at(memory, 1, step.count);
  double* const squares = workspace.coefficients + step.count;  // behind the workspace's rows, one row long
  const int64_t chunks = (step.size + kStreamChunk - 1) / kStreamChunk;
  const int64_t blocks = chunks < kReduceBlocks ? chunks : kReduceBlocks;
  cudaError_t error = cudaMemsetAsync(result, 0, static_cast<size_t>(step.count + 1) * sizeof(double), stream);
  if (error == cudaSuccess)
    error = launch_basis_overlaps<T>(spans, step.count, static_cast<const T*>(nullptr), result, workspace, stream);
  if (error == cudaSuccess) error = launch_subtract_overlaps(step, spans, result, workspace, stream);
  if (error == cudaSuccess)
    error = launch_basis_subtract<T>(spans, step.count, workspace.coefficients, squares, stream);
  if (error != cudaSuccess) return error;
  TORCH_IRE_LAUNCH(norm_kernel, 1u, kStreamThreads, 0, stream, static_cast<const double*>(squares), blocks,
                   result + step.count);
  if (step.next_row != nullptr && step.size > 0)
    TORCH_IRE_LAUNCH((scale_kernel<T, B>), static_cast<unsigned>(blocks), kStreamThreads, 0, stream,
                     static_cast<const T*>(step.w), step.size, static_cast<const double*>(result + step.count),
                     step.next_row);
  return cudaGetLastError();
}

#define TORCH_IRE_INSTANTIATE(T, B) \
  template cudaError_t launch_lanczos_step<T, B>(const LanczosStep<T, B>&, double*, double*, cudaStream_t);
TORCH_IRE_INSTANTIATE(float, float)
TORCH_IRE_INSTANTIATE(float, bfloat16)
TORCH_IRE_INSTANTIATE(double, double)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
