#include "kernels/fused_sgd_flat.h"

#include "kernels/multi_tensor.cuh"
#include "kernels/restore.cuh"
#include "kernels/stored_param.cuh"
#include "math/counter_rng.h"

namespace torch_ire {
namespace {

// grid: one block a chunk; block: any size, striding over the chunk.
template <class T, SgdMomentum kMomentum>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks<T>)
    fused_sgd_flat_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<SgdFlatCudaSpan<T>>) pack,
                          TORCH_IRE_GRID_CONSTANT(SgdFlatCudaParams) params) {
  using opmath = opmath_t<T>;
  constexpr bool kHasMomentum = kMomentum != SgdMomentum::kNone;
  constexpr int kLanes = kLanesOf<opmath>;
  const Chunk chunk = chunk_of_block(pack, blockIdx.x);
  const SgdFlatCudaSpan<T>& s = pack.spans[chunk.span];
  const bool aligned =
      is_aligned<kLanes>(s.param) && is_aligned<kLanes>(s.grad) && is_aligned<kLanes>(s.momentum_buffer);
  if (params.step.skip()) {
    restore<kLanes>(chunk, aligned, s.param.theta_from, s.param.theta);
    return;
  }

  const float t = s.step == nullptr ? 1.0f : *s.step;
  const SgdHyperparameters h{params.step.lr.value(), params.momentum, params.dampening, params.weight_decay,
                             params.step.kappa.value()};
  const SgdCoefficients<opmath> c = sgd_coefficients<opmath>(h, t == 0.0f);
  const opmath grad_factor = static_cast<opmath>(params.step.grad_factor());
  const uint64_t key =
      params.rounding == Rounding::kStochastic ? mix64(s.rounding_key, static_cast<uint64_t>(t + 1.0f)) : 0;

  walk_chunk<kLanes>(chunk, aligned, [&](auto n, int64_t i) {
    constexpr int N = decltype(n)::value;
    const Lanes<opmath, N> theta = load_param<N>(s.param, params.rounding, i);
    const Lanes<T, N> grad = load_lanes<N>(s.grad + i);
    Lanes<opmath, N> buffer{};
    if constexpr (kHasMomentum) buffer = load_lanes<N>(s.momentum_buffer + i);
    const uint32_t flat = flat_bits<N>(s.flat_mask, i);
    Lanes<opmath, N> result;
    TORCH_IRE_UNROLL(N)
    for (int k = 0; k < N; ++k)
      result.lane[k] = sgd_flat_step<kMomentum>(theta.lane[k], to_opmath(grad.lane[k]) * grad_factor, &buffer.lane[k],
                                                (flat >> k & 1u) != 0, c);
    if constexpr (kHasMomentum) store_lanes<N>(s.momentum_buffer + i, buffer);
    store_param<N>(s.param, params.rounding, key, i, result);
  });
}

template <class T, SgdMomentum kMomentum>
cudaError_t launch(const std::vector<SgdFlatCudaSpan<T>>& spans, const SgdFlatCudaParams& params, cudaStream_t stream) {
  static_assert(sizeof(SgdFlatCudaParams) <= kScalarBytes, "kernel parameters");
  return for_each_launch(spans, [&](const SpanPack<SgdFlatCudaSpan<T>>& pack, unsigned blocks) {
    TORCH_IRE_LAUNCH((fused_sgd_flat_kernel<T, kMomentum>), blocks, kStreamThreads, 0, stream, pack, params);
  });
}

}  // namespace

template <class T>
cudaError_t launch_fused_sgd_flat(const std::vector<SgdFlatCudaSpan<T>>& spans, const SgdFlatCudaParams& params,
                                  SgdMomentum momentum, cudaStream_t stream) {
  switch (momentum) {
    case SgdMomentum::kNone: return launch<T, SgdMomentum::kNone>(spans, params, stream);
    case SgdMomentum::kHeavyBall: return launch<T, SgdMomentum::kHeavyBall>(spans, params, stream);
    default: return launch<T, SgdMomentum::kNesterov>(spans, params, stream);
  }
}

#define TORCH_IRE_INSTANTIATE(T)                                                                                  \
  template cudaError_t launch_fused_sgd_flat<T>(const std::vector<SgdFlatCudaSpan<T>>&, const SgdFlatCudaParams&, \
                                                SgdMomentum, cudaStream_t);
TORCH_IRE_INSTANTIATE(float)
TORCH_IRE_INSTANTIATE(double)
TORCH_IRE_INSTANTIATE(bfloat16)
TORCH_IRE_INSTANTIATE(float16)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
