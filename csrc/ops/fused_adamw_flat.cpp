#include "kernels/fused_adamw_flat.h"

#include "kernels/advance_steps.h"
#include "math/counter_rng.h"
#include "ops/checks.h"
#include "ops/cuda_stream.h"
#include "ops/device_scalars.h"
#include "ops/dispatch.h"
#include "ops/library.h"
#include "ops/parallel.h"
#include "ops/scratch.h"
#include "ops/state_list.h"

namespace torch_ire {
namespace {

void check_fused_adamw_flat(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                            const TensorList& exp_avg_sqs, const TensorList& state_steps, const TensorList& flat_masks,
                            const TensorList& restore_from, const TensorList& compensations,
                            const TensorList& master_params, const OptionalTensor& grad_scale,
                            const OptionalTensor& found_inf, const OptionalTensor& lr_tensor,
                            const OptionalTensor& kappa_tensor, const std::vector<int64_t>& rounding_keys,
                            bool packed) {
  constexpr const char* op = "fused_adamw_flat_";
  check_leading_list(op, "params", params);
  const ScalarType dtype = params[0].scalar_type();
  const StateLayout layout(params, packed);
  check_list_like(op, "grads", grads, "params", params, dtype);
  check_state(op, "exp_avgs", exp_avgs, params, opmath_dtype(dtype), layout);
  check_state(op, "exp_avg_sqs", exp_avg_sqs, params, opmath_dtype(dtype), layout);
  check_state_steps(op, "state_steps", state_steps, params, layout);
  check_state_masks(op, "flat_masks", flat_masks, params, layout);
  check_list_like(op, "restore_from", restore_from, "params", params, dtype, /*optional=*/true);
  check_step_scalars(op, params[0], grad_scale, found_inf, lr_tensor, kappa_tensor);
  check_rounding(op, compensations, master_params, rounding_keys, params, layout);
}

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

#ifdef TORCH_IRE_WITH_CUDA

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

#endif

}  // namespace

// Steps. theta <- theta + (1 + kappa n) Delta, Delta the displacement of the base optimizer. An empty `flat_masks`
// means n = 0, an empty `restore_from` that the step starts at the parameters themselves, `compensations`,
// `master_params` and `rounding_keys` that are all empty rounding to nearest. `lr_tensor` and `kappa_tensor` override
// the floats. state_steps are advanced by one, unless `found_inf` is non-zero: then nothing changes but what
// `restore_from` restores. With `packed` each list of state
// holds one tensor with a segment per parameter (kernels/packed_layout.h), `state_steps` one without padding.
TORCH_IRE_OPERATOR(
    "fused_adamw_flat_",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] state_steps, "
    "Tensor[] flat_masks, Tensor[] restore_from, Tensor(e!)[] compensations, Tensor(f!)[] master_params, *, float lr, "
    "float beta1, float beta2, float eps, float weight_decay, float kappa, bool amplify_weight_decay=True, bool "
    "maximize=False, Tensor? grad_scale=None, Tensor? found_inf=None, Tensor? lr_tensor=None, Tensor? "
    "kappa_tensor=None, int[] rounding_keys=[], bool packed=False) -> ()",
    fused_adamw_flat_cpu, fused_adamw_flat_cuda)

}  // namespace torch_ire
