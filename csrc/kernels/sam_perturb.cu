#include "kernels/multi_tensor.cuh"
#include "kernels/sam_perturb.h"

namespace torch_ire {
namespace {

// grid: one block a chunk; block: any size, striding over the chunk.
template <class T>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks<T>)
    sam_perturb_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<SamPerturbSpan<T>>) pack,
                       TORCH_IRE_GRID_CONSTANT(SamPerturbCudaParams) params) {
  using opmath = opmath_t<T>;
  constexpr int kLanes = kLanesOf<T>;
  const Chunk chunk = chunk_of_block(pack, blockIdx.x);
  const SamPerturbSpan<T>& s = pack.spans[chunk.span];
  const bool aligned = is_aligned<kLanes>(s.theta) && is_aligned<kLanes>(s.grad) && is_aligned<kLanes>(s.backup);
  const opmath scale = static_cast<opmath>(sam_scale(params.rho, params.norm.value()));
  walk_chunk<kLanes>(chunk, aligned, [&](auto n, int64_t i) {
    constexpr int N = decltype(n)::value;
    Lanes<T, N> theta = load_lanes<N>(s.theta + i);
    const Lanes<T, N> grad = load_lanes<N>(s.grad + i);
    store_lanes<N>(s.backup + i, theta);
    TORCH_IRE_UNROLL(N)
    for (int k = 0; k < N; ++k)
      theta.lane[k] = round_nearest<T>::from(
          sam_perturb_step(to_opmath(theta.lane[k]), to_opmath(grad.lane[k]), scale, params.adaptive));
    store_lanes<N>(s.theta + i, theta);
  });
}

}  // namespace

template <class T>
cudaError_t launch_sam_perturb(const std::vector<SamPerturbSpan<T>>& spans, const SamPerturbCudaParams& params,
                               cudaStream_t stream) {
  return for_each_launch(spans, [&](const SpanPack<SamPerturbSpan<T>>& pack, unsigned blocks) {
    TORCH_IRE_LAUNCH(sam_perturb_kernel<T>, blocks, kStreamThreads, 0, stream, pack, params);
  });
}

#define TORCH_IRE_INSTANTIATE(T)                                                                                 \
  template cudaError_t launch_sam_perturb<T>(const std::vector<SamPerturbSpan<T>>&, const SamPerturbCudaParams&, \
                                             cudaStream_t);
TORCH_IRE_INSTANTIATE(float)
TORCH_IRE_INSTANTIATE(double)
TORCH_IRE_INSTANTIATE(bfloat16)
TORCH_IRE_INSTANTIATE(float16)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
