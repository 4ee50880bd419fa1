#include <torch/csrc/stable/library.h>

#include "kernels/fused_sgd_flat.h"
#include "math/counter_rng.h"
#include "ops/dispatch.h"
#include "ops/fused_sgd_flat.h"
#include "ops/parallel.h"
#include "ops/scratch.h"
#include "ops/state_list.h"

namespace torch_ire {
namespace {

void fused_sgd_flat_cpu(const TensorList& params, const TensorList& grads, const TensorList& momentum_buffers,
                        const TensorList& state_steps, const TensorList& flat_masks, const TensorList& restore_from,
                        const TensorList& compensations, const TensorList& master_params, double lr, double momentum,
                        double dampening, double weight_decay, bool nesterov, double kappa, bool maximize,
                        const OptionalTensor& grad_scale, const OptionalTensor& found_inf,
                        const OptionalTensor& lr_tensor, const OptionalTensor& kappa_tensor,
                        const std::vector<int64_t>& rounding_keys, bool packed) {
  check_fused_sgd_flat(params, grads, momentum_buffers, state_steps, flat_masks, restore_from, compensations,
                       master_params, momentum, dampening, nesterov, grad_scale, found_inf, lr_tensor, kappa_tensor,
                       rounding_keys, packed);
  const bool skip = scalar_or(found_inf, 0.0) != 0.0;
  if (skip && restore_from.empty()) return;
  const double grad_factor = (maximize ? -1.0 : 1.0) / scalar_or(grad_scale, 1.0);
  const SgdHyperparameters hyperparameters{scalar_or(lr_tensor, lr), momentum, dampening, weight_decay,
                                           scalar_or(kappa_tensor, kappa)};
  const SgdMomentum kind = momentum_kind(momentum, nesterov);
  const Rounding rounding = rounding_of(compensations, master_params, rounding_keys);

  dispatch_floating(params[0].scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using opmath = opmath_t<T>;
    std::vector<SgdFlatSpan<T>>& spans = scratch<SgdFlatSpan<T>>(params.size());
    std::vector<SgdCoefficients<opmath>>& coefficients = scratch<SgdCoefficients<opmath>>(params.size());
    StoredParams<T> stored(params, restore_from, compensations, master_params, packed);
    StateList<opmath> momenta(momentum_buffers, packed);
    StateList<uint8_t> masks(flat_masks, packed);
    for (size_t i = 0; i < params.size(); ++i) {
      const int64_t numel = params[i].numel();
      float* step = step_of(state_steps, packed, i);
      coefficients[i] = sgd_coefficients<opmath>(hyperparameters, step != nullptr && *step == 0.0f);
      if (step != nullptr && !skip) *step += 1.0f;
      const uint64_t key =
          rounding_keys.empty() ? 0 : mix64(static_cast<uint64_t>(rounding_keys[i]), static_cast<uint64_t>(*step));
      spans[i] = {stored.next(numel),
                  data_of<T>(grads[i]),
                  momenta.next(numel),
                  masks.next((numel + 7) / 8),
                  numel,
                  rounding,
                  key};
    }
    parallel_over_list(params, [&](size_t i, int64_t begin, int64_t end) {
      if (skip)
        std::copy(spans[i].param.theta_from + begin, spans[i].param.theta_from + end, spans[i].param.theta + begin);
      else
        fused_sgd_flat_range_cpu(spans[i], coefficients[i], kind, static_cast<opmath>(grad_factor), begin, end);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ire, CPU, m) {
  m.impl("fused_sgd_flat_", TORCH_BOX(&fused_sgd_flat_cpu));
}

}  // namespace torch_ire
