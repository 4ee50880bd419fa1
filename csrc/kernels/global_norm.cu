#include <cmath>

#include "kernels/block_reduce.cuh"
#include "kernels/global_norm.h"
#include "kernels/multi_tensor.cuh"

namespace torch_ire {
namespace {

__device__ inline double square(double v) {
  return v * v;
}

// grid: kReduceBlocks or fewer, striding over the chunks; block: any number of whole warps. Squares of float32 in
// double neither round nor overflow.
template <class T, bool kWeighted>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks<T>)
    sum_of_squares_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<GlobalNormSpan<T>>) pack, uint32_t chunks,
                          double* partials) {
  constexpr int kLanes = kLanesOf<T>;
  double sum = 0.0;
  for (uint32_t block = blockIdx.x; block < chunks; block += gridDim.x) {
    const Chunk chunk = chunk_of_block(pack, block);
    const GlobalNormSpan<T>& s = pack.spans[chunk.span];
    if constexpr (kWeighted) {
      const bool aligned = is_aligned<kLanes>(s.x) && is_aligned<kLanes>(s.weights);
      walk_chunk<kLanes>(chunk, aligned, [&](auto n, int64_t i) {
        constexpr int N = decltype(n)::value;
        const Lanes<T, N> x = load_lanes<N>(s.x + i);
        const Lanes<T, N> weights = load_lanes<N>(s.weights + i);
        TORCH_IRE_UNROLL(N)
        for (int k = 0; k < N; ++k)
          sum += square(static_cast<double>(to_opmath(x.lane[k])) * static_cast<double>(to_opmath(weights.lane[k])));
      });
    } else {
      read_chunk<kLanes>(chunk, s.x, [&](const auto& x) {
        for (const T element : x.lane) sum += square(static_cast<double>(to_opmath(element)));
      });
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// grid: one block
template <class opmath>
__global__ void __launch_bounds__(kStreamThreads)
    root_of_sum_kernel(const double* partials, int64_t count, opmath* norm) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += partials[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *norm = static_cast<opmath>(std::sqrt(sum));
}

}  // namespace

template <class T>
int64_t global_norm_partials(size_t num_tensors) {
  return kReduceBlocks * (static_cast<int64_t>(num_tensors) / SpanPack<GlobalNormSpan<T>>::kMaxSpans + 1);
}

template <class T>
cudaError_t launch_global_norm(const std::vector<GlobalNormSpan<T>>& spans, bool weighted, double* partials,
                               opmath_t<T>* norm, cudaStream_t stream) {
  int64_t count = 0;
  const cudaError_t error = for_each_launch(spans, [&](const SpanPack<GlobalNormSpan<T>>& pack, unsigned chunks) {
    const unsigned blocks = chunks < kReduceBlocks ? chunks : static_cast<unsigned>(kReduceBlocks);
    if (weighted)
      TORCH_IRE_LAUNCH((sum_of_squares_kernel<T, true>), blocks, kStreamThreads, 0, stream, pack, chunks,
                       partials + count);
    else
      TORCH_IRE_LAUNCH((sum_of_squares_kernel<T, false>), blocks, kStreamThreads, 0, stream, pack, chunks,
                       partials + count);
    count += blocks;
  });
  if (error != cudaSuccess) return error;
  TORCH_IRE_LAUNCH(root_of_sum_kernel<opmath_t<T>>, 1u, kStreamThreads, 0, stream, partials, count, norm);
  return cudaGetLastError();
}

#define TORCH_IRE_INSTANTIATE(T)                                                                                 \
  template int64_t global_norm_partials<T>(size_t);                                                              \
  template cudaError_t launch_global_norm<T>(const std::vector<GlobalNormSpan<T>>&, bool, double*, opmath_t<T>*, \
                                             cudaStream_t);
TORCH_IRE_INSTANTIATE(float)
TORCH_IRE_INSTANTIATE(double)
TORCH_IRE_INSTANTIATE(bfloat16)
TORCH_IRE_INSTANTIATE(float16)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
