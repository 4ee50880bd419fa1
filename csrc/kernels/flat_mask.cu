#include "kernels/block_reduce.cuh"
#include "kernels/flat_mask.h"
#include "kernels/instantiate.h"
#include "kernels/multi_tensor.cuh"

namespace torch_ire {
namespace {

// Writes the low `bytes` bytes of a word of bits.
__device__ inline void store_bits(uint8_t* to, uint32_t bits, int bytes) {
  if (bytes == 4 && is_aligned<4>(to)) {
    *reinterpret_cast<uint32_t*>(to) = bits;
    return;
  }
  for (int b = 0; b < bytes; ++b) to[b] = static_cast<uint8_t>(bits >> (8 * b));
}

// grid: one block a chunk; block: any number of whole warps. A lane finds the bits of one vector; the lanes whose bits
// make a word of 32 combine them.
template <class T, Score score>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks<T>)
    flat_mask_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<FlatMaskSpan<T>>) pack,
                     TORCH_IRE_GRID_CONSTANT(DeviceScalar) threshold) {
  using S = score_t<T, score>;
  constexpr int kLanes = kLanesOf<T>;
  constexpr int kLanesOfWord = 32 / kLanes;
  static_assert(kStreamChunk % (kWarpThreads * kLanes) == 0, "words of a mask do not cross chunks");
  const Chunk chunk = chunk_of_block(pack, blockIdx.x);
  const FlatMaskSpan<T>& s = pack.spans[chunk.span];
  const bool aligned = is_aligned<kLanes>(s.scores);
  const S largest_flat = largest_flat_score<S>(threshold.value());
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int stride = static_cast<int>(blockDim.x) * kLanes;
  const auto bits_of = [&](const Lanes<T, kLanes>& x) {
    uint32_t bits = 0;
    TORCH_IRE_UNROLL(kLanes)
    for (int k = 0; k < kLanes; ++k)
      bits |= static_cast<uint32_t>(is_flat(score_of<score>(x.lane[k]), largest_flat)) << k;
    return bits;
  };
  const auto write = [&](int j, uint32_t bits) {
    bits <<= kLanes * (lane % kLanesOfWord);
    TORCH_IRE_UNROLL(5)
    for (int offset = 1; offset < kLanesOfWord; offset *= 2) bits |= __shfl_xor_sync(kFullWarp, bits, offset);
    const int bytes = (chunk.count - j + 7) / 8;
    if (lane % kLanesOfWord == 0 && bytes > 0)
      store_bits(s.flat_mask + (chunk.begin + j) / 8, bits, bytes < 4 ? bytes : 4);
  };
  // The bounds of both loops are the same for all lanes of a warp: all of them take part in the shuffles.
  int base = warp * kWarpThreads * kLanes;
  const int whole = aligned ? chunk.count - (kVectorsInFlight - 1) * stride - kWarpThreads * kLanes : -1;
  for (; base <= whole; base += kVectorsInFlight * stride) {
    const T* const scores = s.scores + chunk.begin + base + lane * kLanes;
    Lanes<T, kLanes> vectors[kVectorsInFlight];
    TORCH_IRE_UNROLL(kVectorsInFlight)
    for (int u = 0; u < kVectorsInFlight; ++u) vectors[u] = load_lanes<kLanes>(scores + u * stride);
    TORCH_IRE_UNROLL(kVectorsInFlight)
    for (int u = 0; u < kVectorsInFlight; ++u) write(base + u * stride + lane * kLanes, bits_of(vectors[u]));
  }
  TORCH_IRE_UNROLL(1)
  for (; base < chunk.count; base += stride) {
    const int j = base + lane * kLanes;
    const T* const scores = s.scores + chunk.begin + j;
    uint32_t bits = 0;
    if (aligned && j + kLanes <= chunk.count) {
      bits = bits_of(load_lanes<kLanes>(scores));
    } else {
      for (int k = 0; k < kLanes && j + k < chunk.count; ++k)
        bits |= static_cast<uint32_t>(is_flat(score_of<score>(scores[k]), largest_flat)) << k;
    }
    write(j, bits);
  }
}

}  // namespace

template <class T, Score score>
cudaError_t launch_flat_mask(const std::vector<FlatMaskSpan<T>>& spans, const DeviceScalar& threshold,
                             cudaStream_t stream) {
  return for_each_launch(spans, [&](const SpanPack<FlatMaskSpan<T>>& pack, unsigned blocks) {
    TORCH_IRE_LAUNCH((flat_mask_kernel<T, score>), blocks, kStreamThreads, 0, stream, pack, threshold);
  });
}

#define TORCH_IRE_INSTANTIATE(T, score)                                                                     \
  template cudaError_t launch_flat_mask<T, score>(const std::vector<FlatMaskSpan<T>>&, const DeviceScalar&, \
                                                  cudaStream_t);
#define TORCH_IRE_INSTANTIATE_SCORES(T)     \
  TORCH_IRE_INSTANTIATE(T, Score::value)    \
  TORCH_IRE_INSTANTIATE(T, Score::absolute) \
  TORCH_IRE_INSTANTIATE(T, Score::square)
TORCH_IRE_FOR_EACH_FLOATING(TORCH_IRE_INSTANTIATE_SCORES)
#undef TORCH_IRE_INSTANTIATE_SCORES
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
