#include "kernels/multi_tensor.cuh"
#include "kernels/score_histogram.h"

namespace torch_ire {
namespace {

using Count = unsigned long long;
static_assert(sizeof(Count) == sizeof(int64_t), "counts are added in place");

// grid: kReduceBlocks or fewer, striding over the chunks. Integers are added in any order to the same end.
template <class T, Score score, class Key>
__global__ void __launch_bounds__(kStreamThreads)
    score_histogram_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<ScoreHistogramSpan<T>>) pack, uint32_t chunks, int shift,
                           const int64_t* prefix, Count* counts) {
  constexpr int kLanes = kLanesOf<T>;
  TORCH_IRE_SHARED(unsigned[kBuckets], of_block);
  const KeyDigit<Key> digit = KeyDigit<Key>::at(shift, *prefix);
  const bool top = digit.is_top();
  for (unsigned b = threadIdx.x; b < kBuckets; b += blockDim.x) of_block[b] = 0;
  __syncthreads();
  for (uint32_t block = blockIdx.x; block < chunks; block += gridDim.x) {
    const Chunk chunk = chunk_of_block(pack, block);
    read_chunk<kLanes>(chunk, pack.spans[chunk.span].x, [&](const auto& lanes) {
      for (const T element : lanes.lane) {
        const Key key = shared_key<Key, score>(element);
        const int bucket = top ? digit.top_bucket(key) : digit.inner_bucket(key);
        if (bucket < static_cast<int>(kBuckets)) atomicAdd(&of_block[bucket], 1u);
      }
    });
  }
  __syncthreads();
  for (unsigned b = threadIdx.x; b < kBuckets; b += blockDim.x)
    if (of_block[b] != 0) atomicAdd(&counts[b], static_cast<Count>(of_block[b]));
}

}  // namespace

template <class T, Score score, class Key>
cudaError_t launch_score_histogram(const std::vector<ScoreHistogramSpan<T>>& spans, int shift, const int64_t* prefix,
                                   int64_t* counts, cudaStream_t stream) {
  const cudaError_t error = cudaMemsetAsync(counts, 0, kBuckets * sizeof(int64_t), stream);
  if (error != cudaSuccess) return error;
  return for_each_launch(spans, [&](const SpanPack<ScoreHistogramSpan<T>>& pack, unsigned chunks) {
    const unsigned blocks = chunks < kReduceBlocks ? chunks : static_cast<unsigned>(kReduceBlocks);
    TORCH_IRE_LAUNCH((score_histogram_kernel<T, score, Key>), blocks, kStreamThreads, 0, stream, pack, chunks, shift,
                     prefix, reinterpret_cast<Count*>(counts));
  });
}

#define TORCH_IRE_INSTANTIATE(T, score, Key)                                                                 \
  template cudaError_t launch_score_histogram<T, score, Key>(const std::vector<ScoreHistogramSpan<T>>&, int, \
                                                             const int64_t*, int64_t*, cudaStream_t);
#define TORCH_IRE_INSTANTIATE_KEYS(T, score) \
  TORCH_IRE_INSTANTIATE(T, score, int32_t)   \
  TORCH_IRE_INSTANTIATE(T, score, int64_t)
#define TORCH_IRE_INSTANTIATE_SCORES(T)          \
  TORCH_IRE_INSTANTIATE_KEYS(T, Score::value)    \
  TORCH_IRE_INSTANTIATE_KEYS(T, Score::absolute) \
  TORCH_IRE_INSTANTIATE_KEYS(T, Score::square)
TORCH_IRE_INSTANTIATE_SCORES(float)
TORCH_IRE_INSTANTIATE_SCORES(bfloat16)
TORCH_IRE_INSTANTIATE_SCORES(float16)
TORCH_IRE_INSTANTIATE(double, Score::value, int64_t)
TORCH_IRE_INSTANTIATE(double, Score::absolute, int64_t)
TORCH_IRE_INSTANTIATE_KEYS(double, Score::square)
#undef TORCH_IRE_INSTANTIATE_SCORES
#undef TORCH_IRE_INSTANTIATE_KEYS
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
