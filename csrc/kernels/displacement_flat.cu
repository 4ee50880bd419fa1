#include "kernels/displacement_flat.h"
#include "kernels/multi_tensor.cuh"

namespace torch_ire {
namespace {

// grid: one block a chunk; block: any size, striding over the chunk.
template <class T>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks<T>)
    displacement_flat_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<DisplacementFlatSpan<T>>) pack,
                             TORCH_IRE_GRID_CONSTANT(DeviceScalar) kappa_now, double keep_rate) {
  using opmath = opmath_t<T>;
  constexpr int kLanes = kLanesOf<T>;
  const Chunk chunk = chunk_of_block(pack, blockIdx.x);
  const DisplacementFlatSpan<T>& s = pack.spans[chunk.span];
  const bool aligned = is_aligned<kLanes>(s.theta) && is_aligned<kLanes>(s.previous);
  const opmath kappa = static_cast<opmath>(kappa_now.value());
  const opmath keep = static_cast<opmath>(keep_rate);
  walk_chunk<kLanes>(chunk, aligned, [&](auto n, int64_t i) {
    constexpr int N = decltype(n)::value;
    Lanes<T, N> theta = load_lanes<N>(s.theta + i);
    const Lanes<T, N> previous = load_lanes<N>(s.previous + i);
    const uint32_t flat = flat_bits<N>(s.flat_mask, i);
    TORCH_IRE_UNROLL(N)
    for (int k = 0; k < N; ++k)
      theta.lane[k] = round_nearest<T>::from(displacement_flat_step(
          to_opmath(theta.lane[k]), to_opmath(previous.lane[k]), (flat >> k & 1u) != 0, kappa, keep));
    store_lanes<N>(s.theta + i, theta);
  });
}

}  // namespace

template <class T>
cudaError_t launch_displacement_flat(const std::vector<DisplacementFlatSpan<T>>& spans, const DeviceScalar& kappa,
                                     double keep, cudaStream_t stream) {
  return for_each_launch(spans, [&](const SpanPack<DisplacementFlatSpan<T>>& pack, unsigned blocks) {
    TORCH_IRE_LAUNCH(displacement_flat_kernel<T>, blocks, kStreamThreads, 0, stream, pack, kappa, keep);
  });
}

#define TORCH_IRE_INSTANTIATE(T)                                                                                     \
  template cudaError_t launch_displacement_flat<T>(const std::vector<DisplacementFlatSpan<T>>&, const DeviceScalar&, \
                                                   double, cudaStream_t);
TORCH_IRE_INSTANTIATE(float)
TORCH_IRE_INSTANTIATE(double)
TORCH_IRE_INSTANTIATE(bfloat16)
TORCH_IRE_INSTANTIATE(float16)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
