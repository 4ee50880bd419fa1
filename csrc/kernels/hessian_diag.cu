#include "kernels/hessian_diag.h"
#include "kernels/multi_tensor.cuh"

namespace torch_ire {
namespace {

// grid: one block a chunk; block: any size, striding over the chunk.
template <class T>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks<T>)
    hessian_diag_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<HessianDiagSpan<T>>) pack,
                        TORCH_IRE_GRID_CONSTANT(HessianDiagCudaParams) params) {
  using opmath = opmath_t<T>;
  constexpr int kLanes = kLanesOf<opmath>;
  const Chunk chunk = chunk_of_block(pack, blockIdx.x);
  const HessianDiagSpan<T>& s = pack.spans[chunk.span];
  const bool aligned = is_aligned<kLanes>(s.hessian_diag) && is_aligned<kLanes>(s.grad);
  const HessianDiagCoefficients<opmath> c{static_cast<opmath>(1.0 / params.grad_scale.value()),
                                          static_cast<opmath>(params.num_predictions), static_cast<opmath>(params.beta),
                                          static_cast<opmath>(1.0 - params.beta)};
  walk_chunk<kLanes>(chunk, aligned, [&](auto n, int64_t i) {
    constexpr int N = decltype(n)::value;
    const Lanes<T, N> grad = load_lanes<N>(s.grad + i);
    Lanes<opmath, N> h = load_lanes<N>(s.hessian_diag + i);
    TORCH_IRE_UNROLL(N)
    for (int k = 0; k < N; ++k) h.lane[k] = hessian_diag_update(h.lane[k], to_opmath(grad.lane[k]), c);
    store_lanes<N>(s.hessian_diag + i, h);
  });
}

}  // namespace

template <class T>
cudaError_t launch_hessian_diag(const std::vector<HessianDiagSpan<T>>& spans, const HessianDiagCudaParams& params,
                                cudaStream_t stream) {
  return for_each_launch(spans, [&](const SpanPack<HessianDiagSpan<T>>& pack, unsigned blocks) {
    TORCH_IRE_LAUNCH(hessian_diag_kernel<T>, blocks, kStreamThreads, 0, stream, pack, params);
  });
}

#define TORCH_IRE_INSTANTIATE(T)                                                                                    \
  template cudaError_t launch_hessian_diag<T>(const std::vector<HessianDiagSpan<T>>&, const HessianDiagCudaParams&, \
                                              cudaStream_t);
TORCH_IRE_INSTANTIATE(float)
TORCH_IRE_INSTANTIATE(double)
TORCH_IRE_INSTANTIATE(bfloat16)
TORCH_IRE_INSTANTIATE(float16)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
