#pragma once

#include "math/sgd.h"
#include "ops/checks.h"

namespace torch_ire {

// Shared by the CPU and the CUDA operator.
inline void check_fused_sgd_flat(const TensorList& params, const TensorList& grads, const TensorList& momentum_buffers,
                                 const TensorList& state_steps, const TensorList& flat_masks,
                                 const TensorList& restore_from, const TensorList& compensations,
                                 const TensorList& master_params, double momentum, double dampening, bool nesterov,
                                 const OptionalTensor& grad_scale, const OptionalTensor& found_inf,
                                 const OptionalTensor& lr_tensor, const OptionalTensor& kappa_tensor,
                                 const std::vector<int64_t>& rounding_keys, bool packed) {
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

inline SgdMomentum momentum_kind(double momentum, bool nesterov) {
  if (momentum == 0.0) return SgdMomentum::kNone;
  return nesterov ? SgdMomentum::kNesterov : SgdMomentum::kHeavyBall;
}

}  // namespace torch_ire
