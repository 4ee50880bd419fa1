#include "kernels/fused_adamw_flat_cuda.h"

#include "kernels/advance_steps_cuda.h"
#include "ops/context_cuda.h"
#include "ops/dispatch.h"
#include "ops/fused_adamw_flat.h"
#include "ops/library.h"
#include "ops/scratch.h"
#include "ops/state_list.h"
#include "ops/step_scalars_cuda.h"

namespace torch_ire {
namespace {

void fused_adamw_flat_cuda(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                           const TensorList& exp_avg_sqs, const TensorList& state_steps, const TensorList& flat_masks,
                           const TensorList& restore_from, const TensorList& compensations,
                           const TensorList& master_params, double lr, double beta1, double beta2, double eps,
                           double weight_decay, double kappa, bool amplify_weight_decay, bool maximize,
                           const OptionalTensor& grad_scale, const OptionalTensor& found_inf,
                           const OptionalTensor& lr_tensor, const OptionalTensor& kappa_tensor,
                           const std::vector<int64_t>& rounding_keys, bool packed) {
  check_fused_adamw_flat(params, grads, exp_avgs, exp_avg_sqs, state_steps, flat_masks, restore_from, compensations,
                         master_params, grad_scale, found_inf, lr_tensor, kappa_tensor, rounding_keys, packed);
  const CudaContext context(params[0]);
  const AdamwFlatCudaParams scalars{step_scalars(lr, lr_tensor, kappa, kappa_tensor, grad_scale, found_inf, maximize),
                                    beta1,
                                    beta2,
                                    eps,
                                    weight_decay,
                                    amplify_weight_decay,
                                    rounding_of(compensations, master_params, rounding_keys)};

  dispatch_floating(params[0].scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using opmath = opmath_t<T>;
    std::vector<AdamwFlatCudaSpan<T>>& spans = scratch<AdamwFlatCudaSpan<T>>(params.size());
    std::vector<float*> steps(params.size());
    StoredParams<T> stored(params, restore_from, compensations, master_params, packed);
    StateList<opmath> first_moments(exp_avgs, packed);
    StateList<opmath> second_moments(exp_avg_sqs, packed);
    StateList<uint8_t> masks(flat_masks, packed);
    for (size_t i = 0; i < params.size(); ++i) {
      const int64_t numel = params[i].numel();
      steps[i] = step_of(state_steps, packed, i);
      spans[i] = {stored.next(numel),
                  data_of<T>(grads[i]),
                  first_moments.next(numel),
                  second_moments.next(numel),
                  masks.next((numel + 7) / 8),
                  steps[i],
                  rounding_keys.empty() ? 0 : static_cast<uint64_t>(rounding_keys[i]),
                  numel};
    }
    check_cuda("fused_adamw_flat_", launch_fused_adamw_flat(spans, scalars, context.stream()));
    check_cuda("fused_adamw_flat_", launch_advance_steps(steps, scalars.step.found_inf, context.stream()));
  });
}

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("fused_adamw_flat_", TORCH_BOX(&fused_adamw_flat_cuda));
}

}  // namespace torch_ire
