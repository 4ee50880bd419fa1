#include "kernels/fused_adamw_flat.h"

#include "kernels/multi_tensor.cuh"
#include "kernels/restore.cuh"
#include "kernels/stored_param.cuh"
#include "math/counter_rng.h"

namespace torch_ire {
namespace {

template <class T>
struct StepOfTensor {
  AdamwCoefficients<opmath_t<T>> coefficients;
  opmath_t<T> grad_factor;
  uint64_t rounding_key;
};

// grid: one block a chunk; block: any size, striding over the chunk.
template <class T>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks<T>)
    fused_adamw_flat_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<AdamwFlatCudaSpan<T>>) pack,
                            TORCH_IRE_GRID_CONSTANT(AdamwFlatCudaParams) params) {
  using opmath = opmath_t<T>;
  constexpr int kLanes = kLanesOf<opmath>;
  const Chunk chunk = chunk_of_block(pack, blockIdx.x);
  const AdamwFlatCudaSpan<T>& s = pack.spans[chunk.span];
  const bool aligned = is_aligned<kLanes>(s.param) && is_aligned<kLanes>(s.grad) && is_aligned<kLanes>(s.exp_avg) &&
                       is_aligned<kLanes>(s.exp_avg_sq);
  if (params.step.skip()) {
    restore<kLanes>(chunk, aligned, s.param.theta_from, s.param.theta);
    return;
  }

  // The powers of beta1 and beta2 take hundreds of double-precision instructions: one thread does them for the block.
  TORCH_IRE_SHARED(StepOfTensor<T>, shared);
  if (threadIdx.x == 0) {
    const double t = static_cast<double>(*s.step + 1.0f);
    const AdamwHyperparameters h{params.step.lr.value(),
                                 params.beta1,
                                 params.beta2,
                                 params.eps,
                                 params.weight_decay,
                                 params.step.kappa.value(),
                                 params.amplify_weight_decay};
    shared.coefficients = adamw_coefficients<opmath>(h, t);
    shared.grad_factor = static_cast<opmath>(params.step.grad_factor());
    shared.rounding_key = mix64(s.rounding_key, static_cast<uint64_t>(t));
  }
  __syncthreads();
  const StepOfTensor<T> step = shared;

  walk_chunk<kLanes>(chunk, aligned, [&](auto n, int64_t i) {
    constexpr int N = decltype(n)::value;
    const Lanes<opmath, N> theta = load_param<N>(s.param, params.rounding, i);
    const Lanes<T, N> grad = load_lanes<N>(s.grad + i);
    Lanes<opmath, N> exp_avg = load_lanes<N>(s.exp_avg + i);
    Lanes<opmath, N> exp_avg_sq = load_lanes<N>(s.exp_avg_sq + i);
    const uint32_t flat = flat_bits<N>(s.flat_mask, i);
    Lanes<opmath, N> result;
    TORCH_IRE_UNROLL(N)
    for (int k = 0; k < N; ++k)
      result.lane[k] = adamw_flat_step(theta.lane[k], to_opmath(grad.lane[k]) * step.grad_factor, exp_avg.lane[k],
                                       exp_avg_sq.lane[k], (flat >> k & 1u) != 0, step.coefficients);
    store_lanes<N>(s.exp_avg + i, exp_avg);
    store_lanes<N>(s.exp_avg_sq + i, exp_avg_sq);
    store_param<N>(s.param, params.rounding, step.rounding_key, i, result);
  });
}

}  // namespace

template <class T>
cudaError_t launch_fused_adamw_flat(const std::vector<AdamwFlatCudaSpan<T>>& spans, const AdamwFlatCudaParams& params,
                                    cudaStream_t stream) {
  static_assert(sizeof(AdamwFlatCudaParams) <= kScalarBytes, "kernel parameters");
  return for_each_launch(spans, [&](const SpanPack<AdamwFlatCudaSpan<T>>& pack, unsigned blocks) {
    TORCH_IRE_LAUNCH(fused_adamw_flat_kernel<T>, blocks, kStreamThreads, 0, stream, pack, params);
  });
}

#define TORCH_IRE_INSTANTIATE(T)                                                            \
  template cudaError_t launch_fused_adamw_flat<T>(const std::vector<AdamwFlatCudaSpan<T>>&, \
                                                  const AdamwFlatCudaParams&, cudaStream_t);
TORCH_IRE_INSTANTIATE(float)
TORCH_IRE_INSTANTIATE(double)
TORCH_IRE_INSTANTIATE(bfloat16)
TORCH_IRE_INSTANTIATE(float16)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
