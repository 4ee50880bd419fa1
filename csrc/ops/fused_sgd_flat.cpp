#include "kernels/fused_sgd_flat.h"

#include "kernels/advance_steps.h"
#include "math/counter_rng.h"
#include "math/sgd.h"
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

void check_fused_sgd_flat(const TensorList& params, const TensorList& grads, const TensorList& momentum_buffers,
                          const TensorList& state_steps, const TensorList& flat_masks, const TensorList& restore_from,
                          const TensorList& compensations, const TensorList& master_params, double momentum,
                          double dampening, bool nesterov, const OptionalTensor& grad_scale,
                          const OptionalTensor& found_inf, const OptionalTensor& lr_tensor,
                          const OptionalTensor& kappa_tensor, const std::vector<int64_t>& rounding_keys, bool packed) {
  constexpr const char* op = "fused_sgd_flat_";
  check_leading_list(op, "params", params);
  const ScalarType dtype = params[0].scalar_type();
  const StateLayout layout(params, packed);
  check_list_like(op, "grads", grads, "params", params, dtype);
  check_state(op, "momentum_buffers", momentum_buffers, params, opmath_dtype(dtype), layout,
              /*optional=*/momentum == 0.0);
  const bool counts = (momentum != 0.0 && dampening != 0.0) || !rounding_keys.empty();
  check_state_steps(op, "state_steps", state_steps, params, layout, /*optional=*/!counts);
  check_state_masks(op, "flat_masks", flat_masks, params, layout);
  check_list_like(op, "restore_from", restore_from, "params", params, dtype, /*optional=*/true);
  TORCH_IRE_CHECK(!nesterov || (momentum != 0.0 && dampening == 0.0), op,
                  "nesterov: expected a momentum and zero dampening, got momentum ", momentum, " and dampening ",
                  dampening);
  check_step_scalars(op, params[0], grad_scale, found_inf, lr_tensor, kappa_tensor);
  check_rounding(op, compensations, master_params, rounding_keys, params, layout);
}

SgdMomentum momentum_kind(double momentum, bool nesterov) {
  if (momentum == 0.0) return SgdMomentum::kNone;
  return nesterov ? SgdMomentum::kNesterov : SgdMomentum::kHeavyBall;
}

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

#ifdef TORCH_IRE_WITH_CUDA

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

#endif

}  // namespace

// momentum_buffers are empty where momentum = 0; state_steps may be empty unless dampening or rounding_keys need the
// count.
TORCH_IRE_OPERATOR("fused_sgd_flat_",
                   "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor(c!)[] state_steps, "
                   "Tensor[] flat_masks, Tensor[] restore_from, Tensor(d!)[] compensations, Tensor(e!)[] "
                   "master_params, *, float lr, float momentum, float dampening, float weight_decay, bool nesterov, "
                   "float kappa, bool maximize=False, Tensor? grad_scale=None, Tensor? found_inf=None, Tensor? "
                   "lr_tensor=None, Tensor? kappa_tensor=None, int[] rounding_keys=[], bool packed=False) -> ()",
                   fused_sgd_flat_cpu, fused_sgd_flat_cuda)

}  // namespace torch_ire
