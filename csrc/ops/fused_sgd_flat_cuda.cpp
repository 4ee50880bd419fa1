#include "kernels/fused_sgd_flat_cuda.h"
#include "kernels/advance_steps_cuda.h"
#include "ops/context_cuda.h"
#include "ops/dispatch.h"
#include "ops/fused_sgd_flat.h"
#include "ops/library.h"
#include "ops/scratch.h"
#include "ops/state_list.h"
#include "ops/step_scalars_cuda.h"

namespace torch_ire {
namespace {

void fused_sgd_flat_cuda(const TensorList& params, const TensorList& grads, const TensorList& momentum_buffers,
                         const TensorList& state_steps, const TensorList& flat_masks, const TensorList& restore_from,
                         const TensorList& compensations, const TensorList& master_params, double lr, double momentum,
                         double dampening, double weight_decay, bool nesterov, double kappa, bool maximize,
                         const OptionalTensor& grad_scale, const OptionalTensor& found_inf,
                         const OptionalTensor& lr_tensor, const OptionalTensor& kappa_tensor,
                         const std::vector<int64_t>& rounding_keys, bool packed) {
  check_fused_sgd_flat(params, grads, momentum_buffers, state_steps, flat_masks, restore_from, compensations,
                       master_params, momentum, dampening, nesterov, grad_scale, found_inf, lr_tensor, kappa_tensor,
                       rounding_keys, packed);
  const CudaContext context(params[0]);
  const SgdFlatCudaParams scalars{step_scalars(lr, lr_tensor, kappa, kappa_tensor, grad_scale, found_inf, maximize),
                                  momentum, dampening, weight_decay,
                                  rounding_of(compensations, master_params, rounding_keys)};

  dispatch_floating(params[0].scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using opmath = opmath_t<T>;
    std::vector<SgdFlatCudaSpan<T>>& spans = scratch<SgdFlatCudaSpan<T>>(params.size());
    std::vector<float*> steps;
    StoredParams<T> stored(params, restore_from, compensations, master_params, packed);
    StateList<opmath> momenta(momentum_buffers, packed);
    StateList<uint8_t> masks(flat_masks, packed);
    for (size_t i = 0; i < params.size(); ++i) {
      const int64_t numel = params[i].numel();
      float* step = step_of(state_steps, packed, i);
      if (step != nullptr) steps.push_back(step);
      spans[i] = {stored.next(numel),
                  data_of<T>(grads[i]),
                  momenta.next(numel),
                  masks.next((numel + 7) / 8),
                  step,
                  rounding_keys.empty() ? 0 : static_cast<uint64_t>(rounding_keys[i]),
                  numel};
    }
    check_cuda("fused_sgd_flat_",
               launch_fused_sgd_flat(spans, scalars, momentum_kind(momentum, nesterov), context.stream()));
    check_cuda("fused_sgd_flat_", launch_advance_steps(steps, scalars.step.found_inf, context.stream()));
  });
}

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("fused_sgd_flat_", TORCH_BOX(&fused_sgd_flat_cuda));
}

}  // namespace torch_ire
