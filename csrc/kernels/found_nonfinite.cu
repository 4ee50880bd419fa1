#include "kernels/found_nonfinite.h"

#include "kernels/instantiate.h"
#include "kernels/multi_tensor.cuh"
#include "math/nonfinite.h"

namespace torch_ire {
namespace {

// grid: kReduceBlocks or fewer, striding over the chunks; block: any size. Whoever finds something writes the same 1.
template <class T>
__global__ void __launch_bounds__(kStreamThreads)
    found_nonfinite_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<FoundNonfiniteSpan<T>>) pack, uint32_t chunks,
                           float* found) {
  constexpr int kLanes = kLanesOf<T>;
  magnitude_key_t<T> largest = 0;
  for (uint32_t block = blockIdx.x; block < chunks; block += gridDim.x) {
    const Chunk chunk = chunk_of_block(pack, block);
    read_chunk<kLanes>(chunk, pack.spans[chunk.span].x, [&](const auto& lanes) {
      for (const T element : lanes.lane) {
        const magnitude_key_t<T> key = magnitude_key(element);
        largest = key > largest ? key : largest;
      }
    });
  }
  if (largest >= infinity_key<T>()) *found = 1.0f;
}

}  // namespace

template <class T>
cudaError_t launch_found_nonfinite(const std::vector<FoundNonfiniteSpan<T>>& spans, float* found, cudaStream_t stream) {
  const cudaError_t error = cudaMemsetAsync(found, 0, sizeof(float), stream);
  if (error != cudaSuccess) return error;
  return for_each_launch(spans, [&](const SpanPack<FoundNonfiniteSpan<T>>& pack, unsigned chunks) {
    const unsigned blocks = chunks < kReduceBlocks ? chunks : static_cast<unsigned>(kReduceBlocks);
    TORCH_IRE_LAUNCH(found_nonfinite_kernel<T>, blocks, kStreamThreads, 0, stream, pack, chunks, found);
  });
}

#define TORCH_IRE_INSTANTIATE(T) \
  template cudaError_t launch_found_nonfinite<T>(const std::vector<FoundNonfiniteSpan<T>>&, float*, cudaStream_t);
TORCH_IRE_FOR_EACH_FLOATING(TORCH_IRE_INSTANTIATE)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
