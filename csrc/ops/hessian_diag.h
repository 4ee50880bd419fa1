#pragma once

#include "ops/checks.h"

namespace torch_ire {

// Shared by the CPU and the CUDA operator.
inline void check_hessian_diag(const TensorList& hessian_diags, const TensorList& grads, double beta,
                               double num_predictions, const OptionalTensor& grad_scale) {
  constexpr const char* op = "hessian_diag_";
  check_leading_list(op, "grads", grads);
  check_list_like(op, "hessian_diags", hessian_diags, "grads", grads, opmath_dtype(grads[0].scalar_type()));
  TORCH_IRE_CHECK(beta >= 0.0 && beta <= 1.0, op, "beta: expected a number in [0, 1], got ", beta);
  TORCH_IRE_CHECK(num_predictions > 0.0, op, "num_predictions: expected a positive number, got ", num_predictions);
  if (grad_scale.has_value()) check_scalar(op, "grad_scale", *grad_scale, grads[0]);
}

}  // namespace torch_ire
