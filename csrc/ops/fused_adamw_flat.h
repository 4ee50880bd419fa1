#pragma once

#include "ops/checks.h"

namespace torch_ire {

// Shared by the CPU and the CUDA operator.
inline void check_fused_adamw_flat(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                                   const TensorList& exp_avg_sqs, const TensorList& state_steps,
                                   const TensorList& flat_masks, const TensorList& restore_from,
                                   const TensorList& compensations, const TensorList& master_params,
                                   const OptionalTensor& grad_scale, const OptionalTensor& found_inf,
                                   const OptionalTensor& lr_tensor, const OptionalTensor& kappa_tensor,
                                   const std::vector<int64_t>& rounding_keys, bool packed) {
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

}  // namespace torch_ire
