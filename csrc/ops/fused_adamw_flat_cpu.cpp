#include "kernels/fused_adamw_flat.h"

#include <torch/csrc/stable/library.h>

#include "math/counter_rng.h"
#include "ops/dispatch.h"
#include "ops/fused_adamw_flat.h"
#include "ops/parallel.h"
#include "ops/scratch.h"
#include "ops/state_list.h"

namespace torch_ire {
namespace {

void fused_adamw_flat_cpu(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                          const TensorList& exp_avg_sqs, const TensorList& state_steps, const TensorList& flat_masks,
                          const TensorList& restore_from, const TensorList& compensations,
                          const TensorList& master_params, double lr, double beta1, double beta2, double eps,
                          double weight_decay, double kappa, bool amplify_weight_decay, bool maximize,
                          const OptionalTensor& grad_scale, const OptionalTensor& found_inf,
                          const OptionalTensor& lr_tensor, const OptionalTensor& kappa_tensor,
                          const std::vector<int64_t>& rounding_keys, bool packed) {
  check_fused_adamw_flat(params, grads, exp_avgs, exp_avg_sqs, state_steps, flat_masks, restore_from, compensations,
                         master_params, grad_scale, found_inf, lr_tensor, kappa_tensor, rounding_keys, packed);
  const bool skip = scalar_or(found_inf, 0.0) != 0.0;
  if (skip && restore_from.empty()) return;
  const double grad_factor = (maximize ? -1.0 : 1.0) / scalar_or(grad_scale, 1.0);
  const AdamwHyperparameters hyperparameters{
      scalar_or(lr_tensor, lr), beta1, beta2, eps, weight_decay, scalar_or(kappa_tensor, kappa), amplify_weight_decay};
  const Rounding rounding = rounding_of(compensations, master_params, rounding_keys);

  dispatch_floating(params[0].scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using opmath = opmath_t<T>;
    std::vector<AdamwFlatSpan<T>>& spans = scratch<AdamwFlatSpan<T>>(params.size());
    std::vector<AdamwCoefficients<opmath>>& coefficients = scratch<AdamwCoefficients<opmath>>(params.size());
    StoredParams<T> stored(params, restore_from, compensations, master_params, packed);
    StateList<opmath> first_moments(exp_avgs, packed);
    StateList<opmath> second_moments(exp_avg_sqs, packed);
    StateList<uint8_t> masks(flat_masks, packed);
    for (size_t i = 0; i < params.size(); ++i) {
      const int64_t numel = params[i].numel();
      float* step = step_of(state_steps, packed, i);
      if (!skip) *step += 1.0f;
      // parameters share their step as a rule, and two powers cost more than a small parameter's update
      const bool same_step = i > 0 && *step == *step_of(state_steps, packed, i - 1);
      coefficients[i] = same_step ? coefficients[i - 1] : adamw_coefficients<opmath>(hyperparameters, *step);
      spans[i] = {
          stored.next(numel),
          data_of<T>(grads[i]),
          first_moments.next(numel),
          second_moments.next(numel),
          masks.next((numel + 7) / 8),
          numel,
          rounding,
          rounding_keys.empty() ? 0 : mix64(static_cast<uint64_t>(rounding_keys[i]), static_cast<uint64_t>(*step))};
    }
    parallel_over_list(params, [&](size_t i, int64_t begin, int64_t end) {
      if (skip)
        std::copy(spans[i].param.theta_from + begin, spans[i].param.theta_from + end, spans[i].param.theta + begin);
      else
        fused_adamw_flat_range_cpu(spans[i], coefficients[i], static_cast<opmath>(grad_factor), begin, end);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ire, CPU, m) {
  m.impl("fused_adamw_flat_", TORCH_BOX(&fused_adamw_flat_cpu));
}

}  // namespace torch_ire
